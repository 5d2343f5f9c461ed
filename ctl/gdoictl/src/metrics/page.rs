//! Every metric with its meaning, and samples of them as the text Prometheus reads (OpenMetrics).

use std::collections::BTreeMap;

use ctl::durations::{BOUNDS, Durations};
use ctl::event::printable;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric, MetricEncoder, text};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Registry;

/// What a metric's values do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Goes up and down.
    Gauge,
    /// Only goes up, until its daemon starts again or its operator clears statistics.
    Counter,
    /// Durations by upper bound, in seconds.
    Histogram,
}

/// A metric.
#[derive(Debug)]
pub struct Metric {
    /// Its name, for a counter without `_total`.
    pub name: &'static str,
    /// What its values do.
    pub kind: Kind,
    /// Names of its labels.
    pub labels: &'static [&'static str],
    /// What it says.
    pub help: &'static str,
}

impl Metric {
    /// The name a query uses, which the library makes of it; of a histogram without `_bucket`, `_sum`, `_count`.
    #[cfg(test)]
    pub fn full_name(&self) -> String {
        match self.kind {
            Kind::Counter => format!("{}_total", self.name),
            Kind::Gauge | Kind::Histogram => self.name.to_owned(),
        }
    }
}

/// Its value.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Value {
    Gauge(f64),
    Counter(u64),
    Durations(Durations),
}

type Labels = Vec<(&'static str, String)>;

/// Samples of metrics.
#[derive(Debug, Default)]
pub struct Page {
    /// By name.
    families: BTreeMap<&'static str, Family>,
}

/// Samples of one metric.
#[derive(Debug)]
struct Family {
    metric: &'static Metric,
    samples: Vec<(Labels, Value)>,
}

impl Page {
    fn add(&mut self, metric: &'static Metric, labels: &[&str], value: Value) {
        let values = labels.iter().map(|value| printable(value));
        let labels = metric.labels.iter().copied().zip(values).collect();
        let family = || Family { metric, samples: Vec::new() };
        self.families.entry(metric.name).or_insert_with(family).samples.push((labels, value));
    }

    /// A gauge; `labels` are values in the order of the metric's labels.
    pub fn gauge(&mut self, metric: &'static Metric, labels: &[&str], value: f64) {
        self.add(metric, labels, Value::Gauge(value));
    }

    /// A gauge that is a whole number.
    pub fn whole(&mut self, metric: &'static Metric, labels: &[&str], value: u64) {
        self.gauge(metric, labels, value as f64);
    }

    /// A counter.
    pub fn counter(&mut self, metric: &'static Metric, labels: &[&str], value: u64) {
        self.add(metric, labels, Value::Counter(value));
    }

    /// A histogram.
    pub fn durations(&mut self, metric: &'static Metric, labels: &[&str], value: Durations) {
        self.add(metric, labels, Value::Durations(value));
    }

    /// As OpenMetrics text.
    pub fn text(self) -> String {
        let mut registry = Registry::default();
        registry.register_collector(Box::new(self));
        let mut out = String::new();
        // Writing to a string does not fail.
        let _ = text::encode(&mut out, &registry);
        out
    }
}

impl Collector for Page {
    fn encode(&self, mut encoder: DescriptorEncoder) -> Result<(), std::fmt::Error> {
        for Family { metric, samples } in self.families.values() {
            let kind = match metric.kind {
                Kind::Gauge => MetricType::Gauge,
                Kind::Counter => MetricType::Counter,
                Kind::Histogram => MetricType::Histogram,
            };
            // The library ends the help with a full stop of its own.
            let help = metric.help.trim_end_matches('.');
            let mut family = encoder.encode_descriptor(metric.name, help, None, kind)?;
            for (labels, value) in samples {
                if labels.is_empty() {
                    value.encode(family.encode_family::<[(&str, &str); 0]>(&[])?)?;
                } else {
                    value.encode(family.encode_family(labels)?)?;
                }
            }
        }
        Ok(())
    }
}

impl Value {
    fn encode(&self, mut encoder: MetricEncoder) -> Result<(), std::fmt::Error> {
        match self {
            Value::Gauge(value) => ConstGauge::new(*value).encode(encoder),
            Value::Counter(value) => ConstCounter::new(*value).encode(encoder),
            Value::Durations(durations) => {
                let bounds = BOUNDS.iter().map(|bound| seconds(*bound)).chain([f64::INFINITY]);
                let buckets: Vec<(f64, u64)> = bounds.zip(durations.buckets).collect();
                let sum = seconds(durations.sum_milliseconds);
                encoder.encode_histogram::<[(&str, &str); 0]>(sum, durations.count, &buckets, None)
            }
        }
    }
}

fn seconds(milliseconds: u64) -> f64 {
    milliseconds as f64 / 1000.0
}

/// `CONSTANT kind "name" [labels] "help";`
macro_rules! metrics {
    ($($constant:ident $kind:ident $name:literal [$($label:literal)*] $help:literal;)*) => {
        $(pub static $constant: Metric =
            Metric { name: $name, kind: Kind::$kind, labels: &[$($label),*], help: $help };)*

        /// Every metric, in the order of the documentation.
        #[cfg(test)]
        pub static ALL: &[&Metric] = &[$(&$constant),*];
    };
}

#[allow(missing_docs, reason = "each has its help")]
pub mod names {
    use super::{Kind, Metric};

    metrics! {
        // Both daemons.
        UP Gauge "gdoi_up" [] "1 when the daemon answers, 0 while it does not; then nothing else is there.";
        BUILD Gauge "gdoi_build_info" ["daemon" "version"] "Always 1; which daemon it is (gcks or gm) and its version.";
        UPTIME Gauge "gdoi_uptime_seconds" [] "Since the start of the daemon.";
        APPROVED_ONLY Gauge "gdoi_approved_only" [] "1 when nothing but approved algorithms is configured and taken.";
        EVENTS Counter "gdoi_events" ["event" "level"] "Events told since the start, also those below log-level; docs/events.md says what each means.";

        // Key server.
        REGISTERED Gauge "gcks_server_registered_members" [] "Members of all groups.";
        IKE_SAS Gauge "gcks_ike_sas" [] "Established phase 1s.";
        PHASE1_ESTABLISHED Counter "gcks_phase1_established" [] "Phase 1 negotiations that ended with two identities proved.";
        PHASE1_FAILED Counter "gcks_phase1_failed" [] "Phase 1 negotiations that ended otherwise.";
        HALF_OPEN Gauge "gcks_half_open" [] "Phase 1 negotiations not yet authenticated.";
        HALF_OPEN_LIMITED Counter "gcks_half_open_limited" [] "First messages dropped or negotiations evicted because of a limit.";
        MESSAGES_DROPPED Counter "gcks_messages_dropped" [] "Messages that got no answer.";
        STORM Gauge "gcks_storm" [] "1 while more register than the cores can take.";
        STORMS Counter "gcks_storms" [] "How often that began.";
        STORM_QUEUE Gauge "gcks_storm_queue" [] "Registrations that wait.";
        DELAYED Counter "gcks_registrations_delayed" [] "Registrations that had to wait.";
        PUSH_WINDOW Gauge "gcks_push_window" [] "Unicast pushes that may be unanswered at a time: so many acknowledgements the receive buffer holds.";
        PUSH_UNANSWERED Gauge "gcks_push_unanswered" [] "Unicast pushes that are unanswered.";
        ACK_LATENCY Gauge "gcks_ack_latency_seconds" [] "From a push to its acknowledgement, smoothed; absent before the first.";
        DATAGRAMS Counter "gcks_datagrams" ["dir"] "Datagrams of the sockets, dir received or sent.";
        OVERFLOWED Counter "gcks_datagrams_overflowed" [] "Datagrams dropped because the engine was behind.";
        SEND_ERRORS Counter "gcks_send_errors" [] "Datagrams the system refused to send.";
        CERTIFICATE_EXPIRES Gauge "gcks_cert_expires_seconds" ["kind" "subject" "serial"] "Until the end of a configured certificate (own, intermediate, anchor) or until the next list is due (crl); 0 when over.";
        MEMBERS Gauge "gcks_group_members" ["group" "state"] "Members, state registered or suspect (left its last rekey unanswered).";
        THRESHOLD Gauge "gcks_group_member_threshold" ["group"] "Most members; absent without a limit.";
        REVOKED Gauge "gcks_group_revoked" ["group"] "Identities that may not register because they were revoked.";
        BY_ANCHOR Gauge "gcks_members_by_anchor" ["group" "anchor"] "Members with a certificate, by subject of the trust anchor it chained to.";
        PULL_SUCCEEDED Counter "gcks_pull_succeeded" ["group"] "Registrations completed.";
        PULL_FAILED Counter "gcks_pull_failed" ["group"] "Registrations refused; the event pull_refused says why.";
        PULL_OVER Counter "gcks_pull_over_threshold" ["group"] "Registrations left unanswered because the group is full.";
        PUSH_SENT Counter "gcks_push_sent" ["group"] "Push datagrams sent, copies included.";
        PUSH_MULTICAST Counter "gcks_push_multicast" ["group"] "Of these, to a multicast group.";
        PUSH_RETRANSMITTED Counter "gcks_push_retransmitted" ["group"] "Of these, copies after the first.";
        PUSH_ACKED Counter "gcks_push_acked" ["group"] "Acknowledgements accepted.";
        PUSH_UNACKED Counter "gcks_push_unacked" ["group"] "Rekeys left unanswered, one per rekey and member.";
        ACKS_REFUSED Counter "gcks_acks_refused" ["group" "cause"] "Acknowledgements that did not count: duplicate, late, unexpected, forged, stranger.";
        ACKS_UNKNOWN Counter "gcks_acks_unknown_sa" [] "Acknowledgements of a rekey SA no group has.";
        REKEYS Counter "gcks_rekeys_pushed" ["group"] "Rekeys begun.";
        SUSPECTED Counter "gcks_members_suspected" ["group"] "Members that left a rekey unanswered and were not removed for it yet.";
        EXPIRED Counter "gcks_members_expired" ["group"] "Members removed for silence.";
        ENDED Counter "gcks_memberships_ended" ["group"] "Memberships that ended by themselves (valid-until).";
        REGISTRATION Histogram "gcks_registration_seconds" ["group"] "From the first message of a GROUPKEY-PULL to its keys.";
        PUSH_ACK Histogram "gcks_push_ack_seconds" ["group"] "From the decision to rekey to a member's acknowledgement.";
        FANOUT Histogram "gcks_push_fanout_seconds" ["group"] "From the decision to rekey until all have answered or the last copy's time is up.";
        LAST_SECONDS Gauge "gcks_group_last_rekey_seconds" ["group"] "The same, of the last push; absent before the first.";
        LAST_RETRANSMITS Gauge "gcks_group_last_rekey_retransmits" ["group"] "Rounds of copies after the first that the last push took.";
        LAST_MISSING Gauge "gcks_group_last_rekey_missing" ["group"] "Members that did not acknowledge the last push.";
        OUTSTANDING Gauge "gcks_push_outstanding" ["group"] "Members that have not acknowledged the push on its way; 0 without one.";
        KEK Gauge "gcks_active_kek_info" ["group" "spi" "encryption" "signature" "sig_hash" "acknowledgement"] "Always 1; the rekey SA in use.";
        KEK_REMAINING Gauge "gcks_kek_remaining_seconds" ["group"] "Life left of the KEK in use.";
        KEK_LIFETIME Gauge "gcks_kek_lifetime_seconds" ["group"] "Life of a new KEK.";
        PUSH_SEQ Gauge "gcks_push_seq" ["group"] "Number of the last push under the KEK in use.";
        TEK_REMAINING Gauge "gcks_tek_remaining_seconds" ["group" "sa" "spi" "state"] "Life left of each TEK: current, next (will encrypt) or retiring.";
        TEK_LIFETIME Gauge "gcks_tek_lifetime_seconds" ["group" "sa"] "Life of a new TEK.";
        SELECTOR Gauge "gcks_tek_selector_info" ["group" "sa" "source" "destination" "source_port" "destination_port" "protocol" "algorithm" "encapsulation"] "Always 1; what traffic is protected, ports and protocol 0 for any.";
        SID_BITS Gauge "gcks_sid_bits" ["group"] "Width of a sender ID.";
        SID_REMAINING Gauge "gcks_sid_remaining" ["group"] "Sender IDs left before every member needs new keys.";
        LKH_DEPTH Gauge "gcks_lkh_depth" ["group"] "Levels of the key tree above its leaves; absent without a tree.";
        LKH_KEYS Counter "gcks_lkh_keys_sent" ["group"] "Keys of the tree handed out: those of each registration, and those of each rekey once for all its copies.";

        // Member.
        GM_STATE Gauge "gm_registration_state" ["vpn" "state"] "1 for the state the VPN is in (unregistered, registering, registered, expired), 0 for the others.";
        GM_SERVER Gauge "gm_registered_server_info" ["vpn" "group" "server"] "Always 1; the key server in use or tried last.";
        GM_PULLS Counter "gm_pulls" ["vpn" "result"] "Registrations: succeeded, failed (refused), timeout (the server was silent), aborted (by us).";
        GM_REKEYS Counter "gm_rekeys_received" ["vpn"] "Pushes applied.";
        GM_REFUSED Counter "gm_rekeys_refused" ["vpn"] "Pushes refused.";
        GM_DUPLICATE Counter "gm_rekeys_duplicate" ["vpn"] "Copies of a push already applied.";
        GM_GAPS Counter "gm_rekey_gaps" ["vpn"] "Pushes that showed that others were missed.";
        GM_ACKS Counter "gm_acks_sent" ["vpn"] "Acknowledgements sent.";
        GM_FAILOVERS Counter "gm_server_failovers" ["vpn"] "Changes to another key server.";
        GM_DELETES Counter "gm_deletes_received" ["vpn"] "Deletes obeyed.";
        GM_UNSUPPORTED Counter "gm_unsupported_algorithm" ["vpn"] "Policies refused because an algorithm is not supported or allowed.";
        GM_KEK_REMAINING Gauge "gm_kek_remaining_seconds" ["vpn"] "Life left of the KEK; absent without one.";
        GM_PUSH_SEQ Gauge "gm_push_seq" ["vpn"] "Number of the last push applied; absent without a KEK.";
        GM_TEKS Gauge "gm_active_teks" ["vpn" "state"] "TEKs: current, next (will encrypt) or retiring.";
        GM_TEK_REMAINING Gauge "gm_tek_remaining_seconds" ["vpn" "flow" "spi" "state"] "Life left of each TEK.";
        GM_KEYS_END Gauge "gm_keys_end_seconds" ["vpn"] "Until the first flow is without a key if no more come; absent without keys.";
        GM_REREGISTER Gauge "gm_reregister_seconds" ["vpn"] "Until the planned registration; absent without one.";
        GM_SIDS Gauge "gm_sender_ids" ["vpn"] "Sender IDs we hold.";
        GM_PACKETS Counter "gm_packets" ["vpn" "dir" "op"] "Packets: op protected (encrypted outbound, decrypted inbound), fragmented, not_sent (encrypted, and the system did not send it).";
        GM_RULES Counter "gm_rule_hits" ["vpn" "dir" "rule"] "Packets in clear by rule: exclude, fail_open, control (key management); rule fail_close are those dropped because there was no key.";
        GM_DROPPED Counter "gm_packets_dropped" ["vpn" "dir" "cause"] "Packets dropped, by cause: docs/counters.md.";
        GM_REPLAY Counter "gm_replay_errors" ["vpn" "cause"] "Of these, inbound ones dropped for their time (IP-D3P) or sequence number.";
        GM_SA_PACKETS Counter "gm_sa_packets" ["vpn" "spi" "dir"] "Packets under one TEK.";
        GM_SA_BYTES Counter "gm_sa_bytes" ["vpn" "spi" "dir"] "Octets of these packets within ESP.";
        GM_SKEW Gauge "gm_time_sync_error_seconds" ["vpn" "sender"] "How far a sender's clock is from ours, with the way here (IP-D3P), of its last packet; negative when earlier.";
        GM_SKEW_MOST Gauge "gm_max_time_delta_seconds" ["vpn" "sender"] "The largest such distance.";
        GM_IKE_SAS Gauge "gm_ike_sas" [] "Established phase 1s.";
        GM_PHASE1_ESTABLISHED Counter "gm_phase1_established" [] "Phase 1 negotiations that ended with two identities proved.";
        GM_PHASE1_FAILED Counter "gm_phase1_failed" [] "Phase 1 negotiations that ended otherwise.";
        GM_MESSAGES_DROPPED Counter "gm_messages_dropped" [] "Messages that got no answer.";
        GM_DATAGRAMS Counter "gm_datagrams" ["dir"] "Datagrams of the sockets, dir received or sent.";
        GM_OVERFLOWED Counter "gm_datagrams_overflowed" [] "Datagrams dropped because the engine was behind.";
        GM_SEND_ERRORS Counter "gm_send_errors" [] "Datagrams the system refused to send.";
    }
}
