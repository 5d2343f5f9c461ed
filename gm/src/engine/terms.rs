//! When the others turn to which TEK, from the lives and delays that a registration or a PUSH states (RFC 6407 sections
//! 5.4.1, 5.5).
//!
//! Those of a registration count from the moment the server wrote message 2. Nobody tells us when that was: it lies between
//! our message 1 and its message 2. Those of a PUSH count from its first copy, and DTD leaves room for the last. A TEK that
//! was replaced lives DTD after its replacement was told, and everybody turns to the new one at ATD: so its life says when
//! that happens or happened.
//!
//! ```text
//! new TEK told         others turn to it      old TEK goes
//!      |----- ATD ------------|---- DTD-ATD ------|
//!               |------- life of the old TEK -----|
//!           message 2
//! ```

use std::time::Duration;

use gdoi_proto::policy::{GroupPolicy, TekPolicy};

/// Terms whose moment is known no better than this say when the others turn to a key too vaguely.
const VAGUE: Duration = Duration::from_secs(5);

/// The age of a server's terms: they were made between our message 1 and its message 2.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Age {
    /// Since message 2 came.
    pub least: Duration,
    /// Since message 1 left for the first time.
    pub most: Duration,
}

impl Age {
    /// True when it depends on the true age whether we encrypt a flow as the others do. Asking again gives fresh terms.
    pub fn is_vague(self, policy: &GroupPolicy) -> bool {
        let turns = |tek: &TekPolicy| successors(policy, tek).next().is_some();
        self.most - self.least > VAGUE
            && policy.teks.iter().any(|tek| turns(tek) && !has_left(policy, tek, self.least))
    }
}

/// True when two TEKs serve the same traffic.
pub fn same_flow(left: &TekPolicy, right: &TekPolicy) -> bool {
    left.ip_protocol == right.ip_protocol
        && left.source == right.source
        && left.destination == right.destination
        && left.direction == right.direction
}

/// How long from now until we encrypt under this one of `ours`; none: never. `open` says that something encrypts its flow
/// already that the others can open. Where nothing does, the TEK that they use now does at once: of those that they have not
/// left the one that ends first.
pub fn sends_in(
    policy: &GroupPolicy,
    ours: &[TekPolicy],
    tek: &TekPolicy,
    open: bool,
    age: Age,
) -> Option<Duration> {
    let left = |tek: &TekPolicy| has_left(policy, tek, age.most);
    let first = ours
        .iter()
        .filter(|other| same_flow(other, tek) && !left(other))
        .min_by_key(|it| it.lifetime_seconds);
    let at_once = !open && first.is_some_and(|first| first.spi == tek.spi);
    match (left(tek), at_once) {
        (true, _) => None,
        (false, true) => Some(Duration::ZERO),
        (false, false) => (!is_skipped(policy, tek, age.least)).then(|| turn(policy, tek, age.least)),
    }
}

/// True when the others encrypt under a successor of this TEK, `age` after its terms were made.
pub fn has_left(policy: &GroupPolicy, tek: &TekPolicy, age: Duration) -> bool {
    life(tek) <= overlap(policy) + age && successors(policy, tek).next().is_some()
}

/// How long from now, `age` after the terms were made, until the others encrypt under this TEK.
fn turn(policy: &GroupPolicy, tek: &TekPolicy, age: Duration) -> Duration {
    let older = |other: &&TekPolicy| same_flow(other, tek) && other.lifetime_seconds < tek.lifetime_seconds;
    let predecessor = policy.teks.iter().filter(older).max_by_key(|other| other.lifetime_seconds);
    let delay = activation(policy);
    let from_terms =
        predecessor.map_or(delay, |other| life(other).saturating_sub(overlap(policy)).min(delay));
    from_terms.saturating_sub(age)
}

/// True when the others never encrypt under this TEK, unless they do now: it was replaced before its time, and they turn to
/// its successor no later.
fn is_skipped(policy: &GroupPolicy, tek: &TekPolicy, age: Duration) -> bool {
    let own = turn(policy, tek, age);
    successors(policy, tek).any(|next| turn(policy, next, age) <= own)
}

/// ATD.
pub fn activation(policy: &GroupPolicy) -> Duration {
    seconds(u32::from(policy.activation_delay))
}

fn successors<'a>(policy: &'a GroupPolicy, tek: &'a TekPolicy) -> impl Iterator<Item = &'a TekPolicy> {
    let later = |other: &&TekPolicy| same_flow(other, tek) && other.lifetime_seconds > tek.lifetime_seconds;
    policy.teks.iter().filter(later)
}

/// This long before the others drop a replaced TEK, they all encrypt under its successor.
fn overlap(policy: &GroupPolicy) -> Duration {
    seconds(u32::from(policy.deactivation_delay.unwrap_or(0))).saturating_sub(activation(policy))
}

fn life(tek: &TekPolicy) -> Duration {
    seconds(tek.lifetime_seconds)
}

fn seconds(count: u32) -> Duration {
    Duration::from_secs(u64::from(count))
}

#[cfg(test)]
mod tests {
    use super::super::testing::{policy, tek};
    use super::*;

    /// ATD 20 s, DTD 60 s: a TEK is left 40 s before it ends.
    fn terms(old: u32, new: u32) -> GroupPolicy {
        let teks = vec![tek(300, old), tek(301, new)];
        GroupPolicy { activation_delay: 20, deactivation_delay: Some(60), ..policy(None, teks) }
    }

    #[test]
    fn the_life_of_the_old_tek_says_when_the_others_turn_to_the_new_one() {
        for (old, age, expected) in
            [(60, 0, 20), (55, 0, 15), (41, 0, 1), (30, 0, 0), (55, 5, 10), (900, 0, 20)]
        {
            let terms = terms(old, 3600);
            assert_eq!(turn(&terms, &terms.teks[1], seconds(age)), seconds(expected), "{old} {age}");
            let left = has_left(&terms, &terms.teks[0], seconds(age));
            assert_eq!(left, old <= 40 + age, "{old} {age}");
            assert!(!has_left(&terms, &terms.teks[1], seconds(age)), "nothing follows it");
        }
    }

    #[test]
    fn a_tek_that_was_replaced_before_its_turn_is_skipped() {
        // Two rekeys in the same second, 10 s ago: 300 was in use, 301 never will be.
        for (lives, skipped) in [([50, 50, 3600], true), ([49, 50, 3600], false), ([30, 50, 3600], false)] {
            let [first, second, third] = lives;
            let teks = vec![tek(300, first), tek(301, second), tek(302, third)];
            let terms = GroupPolicy { teks, ..terms(0, 0) };
            assert_eq!(is_skipped(&terms, &terms.teks[1], Duration::ZERO), skipped, "{lives:?}");
            assert!(!is_skipped(&terms, &terms.teks[2], Duration::ZERO), "nothing follows it");
        }
    }

    #[test]
    fn a_tek_of_another_flow_is_no_predecessor() {
        let mut terms = terms(45, 3600);
        terms.teks[0].ip_protocol = 6;
        assert_eq!(turn(&terms, &terms.teks[1], Duration::ZERO), seconds(20));
        assert!(!has_left(&terms, &terms.teks[0], Duration::ZERO));
    }

    #[test]
    fn only_terms_in_which_somebody_turns_are_vague() {
        let age = |least, most| Age { least: seconds(least), most: seconds(most) };
        assert!(age(0, 6).is_vague(&terms(50, 3600)));
        assert!(!age(0, 5).is_vague(&terms(50, 3600)), "a round trip or two");
        assert!(!age(0, 6).is_vague(&terms(40, 3600)), "they have turned whatever the age");
        assert!(age(9, 16).is_vague(&terms(50, 3600)));
        assert!(!age(10, 16).is_vague(&terms(50, 3600)));
        assert!(!age(0, 60).is_vague(&terms(3600, 3600)), "neither follows the other");
    }
}
