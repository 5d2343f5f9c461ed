//! `gdoictl load`: registers many members from loopback addresses with a running key server, tells how fast that went,
//! and acknowledges pushes if asked to. It speaks the member's real protocol with the member's own code; see
//! `docs/performance.md` for how figures are taken.

mod crowd;
mod keys;
pub mod options;
mod report;

use std::path::Path;
use std::sync::{Arc, mpsc};
use std::time::Duration;

use config::secret_source::Source;
use ctl::control::Request;
use gdoi_proto::message::Dialect;
use ike::identity::IdentityRule;
use ike::phase1::{Credentials, Mode, Offer, PeerPolicy};
use runtime::clock::Clock;

use crate::connect::Daemon;
use crate::{Failure, say, table};
use crowd::{Crowd, Tally};
use options::LoadArgs;
use report::Report;

/// Runs the load and prints its report.
///
/// # Errors
/// [`Failure::Usage`] for a load that cannot be, [`Failure::Refused`] when it could not be run or a member failed.
pub fn run(options: &LoadArgs, daemon: &Daemon, json: bool) -> Result<(), Failure> {
    if !options.stays_on_loopback() {
        return Err(Failure::Usage(format!(
            "{} members from {} on do not fit into 127.0.0.0/8",
            options.members, options.first_address
        )));
    }
    let mut options = options.clone();
    options.threads = options.threads.min(options.members);
    let options = Arc::new(options);
    let policy = policy(&options)?;
    let clock = Clock::start();
    let mut crowds = Vec::new();
    for number in 0..options.threads {
        let crowd = Crowd::new(Arc::clone(&options), number, policy.clone(), clock);
        crowds.push(crowd.map_err(Failure::Refused)?);
    }

    let cpu = || options.server_pid.map(report::cpu_of).transpose().map_err(Failure::Refused);
    let (before, begin) = (cpu()?, clock.now().at);
    let threads: Vec<Thread> =
        crowds.into_iter().map(|crowd| Thread::start(crowd, &options)).collect::<Result<_, _>>()?;
    let registered = threads.iter().map(Thread::next).collect::<Result<Vec<Tally>, _>>()?;
    let (between, seconds) = (cpu()?, clock.now().at.since(begin).as_secs_f64());
    let used = |from: Option<f64>, to: Option<f64>| from.zip(to).map(|(from, to)| to - from);
    let mut report = Report::new(&options, &registered, seconds, used(before, between));

    if options.acknowledge > 0 {
        threads.iter().for_each(Thread::stay);
        let group = options.group.to_string();
        if options.rekey {
            daemon.ask(&Request::Rekey { group, tek: true, kek: false })?;
        } else if options.revoke {
            daemon.ask(&Request::Revoke { group, member: options.first_address.to_string() })?;
        }
        let all = threads.iter().map(Thread::next).collect::<Result<Vec<Tally>, _>>()?;
        report.acknowledged(&all, used(between, cpu()?));
    }
    say(&if json { table::json(&report)? } else { report.text() })?;
    match report.failed {
        0 => Ok(()),
        failed => Err(Failure::Refused(format!("{failed} of {} registrations failed", options.members))),
    }
}

/// How members negotiate: one offer, and the key server is whoever has the key and the address asked.
fn policy(options: &LoadArgs) -> Result<PeerPolicy, Failure> {
    let key_file = match (&options.config, &options.key_file) {
        (Some(config), _) => return policy_of(config),
        (None, Some(key_file)) => key_file.clone(),
        (None, None) => return Err(Failure::Usage("neither --key-file nor --config".to_owned())),
    };
    let key = Source::File(key_file).read_text(&|_| None);
    let pre_shared_key = key.map_err(|(what, hint)| match hint.as_str() {
        "" => Failure::Usage(what),
        hint => Failure::Usage(format!("{what}: {hint}")),
    })?;
    Ok(PeerPolicy {
        mode: Mode::Main,
        offers: vec![Offer { suite: options.suite(), lifetime: Duration::from_secs(3600) }],
        credentials: Credentials::pre_shared(pre_shared_key),
        local_identity: None,
        remote: vec![IdentityRule::PeerAddress],
        nat_traversal: false,
        fragmentation: false,
        dialect: Dialect::STRICT,
    })
}

/// How the member of a configuration negotiates with its first server.
fn policy_of(config: &Path) -> Result<PeerPolicy, Failure> {
    let loaded = config::load_gm(config, config::Options::default());
    let config = loaded.map_err(|errors| Failure::Usage(errors.to_string()))?.config;
    let gateway = gm::convert::settings(&config, false).gateways.into_iter().next();
    let policy = gateway.and_then(|gateway| gateway.policies.into_iter().next());
    policy.ok_or_else(|| Failure::Usage("the configuration has no gateway".to_owned()))
}

/// A crowd at work: it registers, waits to be told, acknowledges.
struct Thread {
    tallies: mpsc::Receiver<Tally>,
    stay: mpsc::Sender<()>,
}

impl Thread {
    fn start(mut crowd: Crowd, options: &LoadArgs) -> Result<Thread, Failure> {
        let failed = |error: std::io::Error| Failure::Refused(format!("a thread cannot be started: {error}"));
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().map_err(failed)?;
        let time = Duration::from_secs(u64::from(options.acknowledge));
        let ((tally, tallies), (stay, told)) = (mpsc::channel(), mpsc::channel());
        let work = move || {
            // Whoever waited may have given up.
            let _ = tally.send(runtime.block_on(crowd.register()));
            if told.recv().is_ok() {
                let _ = tally.send(runtime.block_on(crowd.acknowledge(time)));
            }
        };
        std::thread::Builder::new().name("load".to_owned()).spawn(work).map_err(failed)?;
        Ok(Thread { tallies, stay })
    }

    fn next(&self) -> Result<Tally, Failure> {
        self.tallies.recv().map_err(|_| Failure::Refused("a thread of the load ended by itself".to_owned()))
    }

    fn stay(&self) {
        let _ = self.stay.send(());
    }
}
