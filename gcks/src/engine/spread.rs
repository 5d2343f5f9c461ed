//! Lives that are handed out at registration end a little earlier for each member, always by the same part for the same
//! one: members that register together do not come again in the same second.

use std::net::SocketAddr;
use std::time::Duration;

use gdoi_proto::policy::GroupPolicy;
use ike::crypto::Hash;
use ike::crypto::prf::hash;
use ike::io::Instant;

use super::group::Group;
use super::member::MemberKey;
use super::membership::Gone;

/// No life is shortened by more than this part of it.
const PART: u32 = 100;
/// Without pushes, members send on a successor this part of a life before its predecessor ends: half of that is left.
const UNPUSHED: u32 = 128;

impl Group {
    /// What a life may be shortened by at most: its successor is everywhere, and the old key dropped, well before.
    fn slack(&self, life: Duration, margin: Duration) -> Duration {
        let Some(communication) = &self.settings.communication else { return life / UNPUSHED };
        let rollover = communication.retransmission_period * (communication.retransmissions + 1)
            + Duration::from_secs(u64::from(communication.deactivation_delay));
        (life / PART).min(margin.saturating_sub(rollover) / 2)
    }

    /// The part of `slack` that is this member's.
    fn share(&self, key: &MemberKey, slack: Duration) -> Duration {
        let octets = hash(Hash::Sha256, &[self.settings.name.as_bytes(), &[key.id_type.number()], &key.data]);
        let share = octets.first_chunk::<2>().map_or(0, |octets| u32::from(u16::from_be_bytes(*octets)));
        slack * share / (1 << 16)
    }

    /// Shortens the lives of what a member is given. Keys that are about to be replaced, or are, stay as they are.
    pub(super) fn spread(&self, at: Instant, key: &MemberKey, policy: &mut GroupPolicy) {
        let shorten = |seconds: &mut u32, ends: Instant, life: Duration, margin: Duration| {
            if ends.since(at) > margin {
                let share = u32::try_from(self.share(key, self.slack(life, margin)).as_secs()).unwrap_or(0);
                *seconds = seconds.saturating_sub(share).max(1);
            }
        };
        for offered in &mut policy.teks {
            let tek = self.teks.iter().find(|tek| tek.spi == offered.spi && tek.retires.is_none());
            let Some((tek, sa)) = tek.and_then(|tek| Some((tek, self.sa_settings(&tek.sa)?))) else {
                continue;
            };
            shorten(&mut offered.lifetime_seconds, tek.ends, sa.lifetime, sa.margin);
        }
        if let (Some(offered), Some(kek), Some(communication)) =
            (&mut policy.kek, &self.kek, &self.settings.communication)
        {
            shorten(&mut offered.lifetime_seconds, kek.ends, communication.lifetime, communication.margin);
        }
    }

    /// When the keys of the member at an address end; none for somebody without keys.
    pub(super) fn keys_end(&self, peer: SocketAddr) -> Option<Instant> {
        let number = self.members.at(peer).or_else(|| self.members.only_at(peer.ip()));
        let Some((number, member)) =
            number.and_then(|number| Some((number, self.members.at_number(number)?)))
        else {
            // Others change keys without it.
            let expired = |former: &super::membership::Former| {
                former.gone == Gone::Expired && former.member.peer.ip() == peer.ip()
            };
            return self.former.iter().any(expired).then_some(Instant::default());
        };
        let ends = self.teks.iter().map(|tek| tek.retires.map_or(tek.ends, |retires| retires.min(tek.ends)));
        // Who heard every push holds the latest.
        let end = match self.settings.communication.is_some() && member.missed == 0 {
            true => ends.max(),
            false => ends.min(),
        }?;
        let sa = self.settings.sas.first();
        let slack = sa.map_or(Duration::ZERO, |sa| self.slack(sa.lifetime, sa.margin));
        Some(end - self.share(self.members.key(number)?, slack))
    }
}
