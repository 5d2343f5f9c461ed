//! `cargo lab speed`: one TCP stream between hosts in two LANs, through our data plane and through the tunnels of others on the
//! same ground, in turns, so that what else this machine does falls on all of them.
//!
//! ```text
//! lan1 -- gm1 -- bridge -- gm2 -- lan2      iperf3 from lan1 to lan2, a ping beside it; the tunnel is between gm1 and gm2
//! ```

mod measure;
mod peers;

use std::collections::BTreeMap;

use clap::Args;
use gdoi_lab::LabError;
use gdoi_lab::binaries::Binaries;
use gdoi_lab::network::Network;
use gdoi_lab::site::Site;

use measure::Taken;
use peers::{ALL, Peer};

/// What `cargo lab speed` is asked for.
#[derive(Debug, Args)]
pub struct Plan {
    /// Rounds; each takes every tunnel once
    #[arg(long, default_value_t = 5)]
    rounds: u32,
    /// Seconds of each measurement
    #[arg(long, default_value_t = 4)]
    seconds: u32,
    /// Only tunnels whose name has one of these words
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
    /// Where boringtun-cli is, if not in the PATH
    #[arg(long, value_name = "DIR")]
    programs: Option<std::path::PathBuf>,
}

/// Measures and prints.
///
/// # Errors
/// When the ground cannot be had; a tunnel that does not come up is only named.
pub fn compare(plan: &Plan, network: Network, binaries: &Binaries) -> Result<(), LabError> {
    if let Some(reason) = network.no_traffic().or_else(measure::missing) {
        return Err(LabError::Wrong(reason.to_owned()));
    }
    network.add_lans()?;
    let site = Site::new(network, binaries.clone())?;
    let wanted = |peer: &&Peer| plan.only.is_empty() || plan.only.iter().any(|word| peer.name.contains(word));
    let mut taken: BTreeMap<usize, Vec<Taken>> = BTreeMap::new();
    println!("load average before: {}", measure::load());
    for round in 1..=plan.rounds {
        for (index, peer) in ALL.iter().enumerate().filter(|(_, peer)| wanted(peer)) {
            let measured = peer
                .start(&site, plan.programs.as_deref())
                .and_then(|running| measure::take(&site, running.processes(), plan.seconds));
            match measured {
                Ok(one) => {
                    println!("round {round}: {:<28} {one}", peer.name);
                    taken.entry(index).or_default().push(one);
                }
                Err(error) => println!("round {round}: {:<28} {error}", peer.name),
            }
        }
    }
    println!("load average after: {}", measure::load());
    print_table(&taken);
    Ok(())
}

fn print_table(taken: &BTreeMap<usize, Vec<Taken>>) {
    println!();
    println!(
        "| tunnel | Gbit/s | sender, receiver: CPU s per Gbit | ping under load, median, p99 ms | packets/s of 64 octets | others: ratio to ours in UDP, raw |"
    );
    println!("| --- | --- | --- | --- | --- | --- |");
    let column = |taken: &[Taken], of: fn(&Taken) -> f64| measure::median(taken.iter().map(of).collect());
    for (index, all) in taken {
        let Some(peer) = ALL.get(*index) else { continue };
        let ratio = |name: &str| {
            let ours = ALL.iter().position(|peer| peer.name == name).and_then(|ours| taken.get(&ours));
            // Of each round by itself: what slowed a round down slowed both.
            let each =
                ours.map(|ours| ours.iter().zip(all).map(|(ours, one)| ours.gbits / one.gbits).collect());
            each.map_or("-".to_owned(), |each| format!("{:.1}", measure::median(each)))
        };
        let least = all.iter().map(|one| one.gbits).fold(f64::INFINITY, f64::min);
        let most = all.iter().map(|one| one.gbits).fold(0.0, f64::max);
        println!(
            "| {} | {:.2} ({least:.2} to {most:.2}) | {:.3}, {:.3} | {:.2}, {:.2} | {:.0} | {}, {} |",
            peer.name,
            column(all, |one| one.gbits),
            column(all, |one| one.cpu[0]),
            column(all, |one| one.cpu[1]),
            column(all, |one| one.ping),
            column(all, |one| one.ping_p99),
            column(all, |one| one.packets),
            ratio(peers::OURS_UDP),
            ratio(peers::OURS_RAW),
        );
    }
}
