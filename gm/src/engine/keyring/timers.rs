//! When a key encrypts, when it goes, and when its end or its use sends us to the server.

use ctl::event::Event;
use gdoi_proto::ids::{KekSpi, Spi};
use ike::io::{Instant, Wakeup};

use super::super::Cx;
use super::super::io::Output;
use super::super::terms::same_flow;
use super::{Keyring, Limit, OldKek, Sending, Tek};

impl Keyring {
    pub(super) fn activate_due(&mut self, cx: &mut Cx<'_>) {
        // In the order of their moments: the one activated last encrypts.
        let mut due: Vec<(Instant, Spi)> = self
            .teks
            .iter()
            .filter_map(|tek| match tek.sending {
                Sending::At(at) if at <= cx.now.at => Some((at, tek.policy.spi)),
                Sending::At(_) | Sending::Now | Sending::Never => None,
            })
            .collect();
        due.sort_by_key(|(at, _)| *at);
        for (_, spi) in due {
            if let Some(tek) = self.teks.iter_mut().find(|tek| tek.policy.spi == spi) {
                tek.sending = Sending::Now;
                cx.out.push(Output::Activate { vpn: self.vpn.clone(), spi });
                cx.out.event(Event::TekActivated { vpn: self.vpn.clone(), spi: spi.to_string() });
            }
        }
    }

    pub(super) fn remove_due(&mut self, cx: &mut Cx<'_>) {
        let now = cx.now.at;
        let (gone, left): (Vec<Tek>, Vec<Tek>) = std::mem::take(&mut self.teks)
            .into_iter()
            .partition(|tek| tek.expires <= now || tek.leaves.is_some_and(|leaves| leaves <= now));
        self.teks = left;
        for tek in gone {
            let reason = if tek.expires <= now { "its life ended" } else { "replaced or deleted" };
            self.tell_removed(tek.policy.spi, reason, cx);
        }
    }

    pub(super) fn tell_removed(&self, spi: Spi, reason: &str, cx: &mut Cx<'_>) {
        cx.out.push(Output::Remove { vpn: self.vpn.clone(), spi });
        let (vpn, spi, reason) = (self.vpn.clone(), spi.to_string(), reason.to_owned());
        cx.out.event(Event::TekRemoved { vpn, spi, reason });
    }

    /// Activates, removes, and says why the server must be asked, if it must.
    pub fn on_timeout(&mut self, cx: &mut Cx<'_>) -> Option<&'static str> {
        let now = cx.now.at;
        self.activate_due(cx);
        let had_teks = !self.teks.is_empty();
        self.remove_due(cx);
        self.old_keks.retain(|old| old.kek.expires > now);
        let over = |old: &OldKek| old.superseded && old.not_before <= now;
        let gone: Vec<KekSpi> =
            self.old_keks.iter().filter(|old| over(old)).map(|old| old.kek.policy.spi).collect();
        self.drop_keks(|spi| gone.contains(&spi));
        let mut wish = None;
        if had_teks && self.teks.is_empty() {
            cx.out.event(Event::KeysExpired { vpn: self.vpn.clone() });
            wish = Some("no TEK is left");
        }
        if self.kek.as_ref().is_some_and(|kek| kek.expires <= now) {
            self.kek = None;
            wish = Some("the KEK ended");
        }
        if let Some(kek) = &mut self.kek
            && kek.soft.is_some_and(|soft| soft <= now)
        {
            kek.soft = None;
            wish = Some("the KEK ends soon");
        }
        for index in 0..self.teks.len() {
            let tek = &self.teks[index];
            if tek.soft.is_none_or(|soft| soft > now) {
                continue;
            }
            let succeeded = tek.leaves.is_some() || self.is_succeeded(tek);
            self.teks[index].soft = None;
            if !succeeded {
                wish = Some("a TEK ends soon and no other replaces it");
            }
        }
        wish
    }

    /// A TEK is used up so far; true when the server must be asked. It is asked once per TEK, limit and Sender-ID, and not
    /// when a successor is waiting.
    pub fn on_limit(&mut self, spi: Spi, limit: Limit) -> bool {
        let Some(tek) = self.teks.iter().find(|tek| tek.policy.spi == spi) else { return false };
        let succeeded = tek.leaves.is_some() || self.is_succeeded(tek);
        let told = tek.limit_told >= Some(limit);
        if let Some(tek) = self.teks.iter_mut().find(|tek| tek.policy.spi == spi) {
            tek.limit_told = tek.limit_told.max(Some(limit));
        }
        !succeeded && !told
    }

    /// True when a later TEK serves the same flow.
    fn is_succeeded(&self, tek: &Tek) -> bool {
        self.teks.iter().any(|other| {
            other.leaves.is_none() && other.expires > tek.expires && same_flow(&other.policy, &tek.policy)
        })
    }

    /// When the first flow is without a TEK if no more keys come.
    pub fn keys_until(&self) -> Option<Instant> {
        let end = |tek: &Tek| tek.leaves.map_or(tek.expires, |leaves| leaves.min(tek.expires));
        let last =
            |tek: &Tek| self.teks.iter().filter(|other| same_flow(&other.policy, &tek.policy)).map(end).max();
        self.teks.iter().filter_map(last).min()
    }

    /// Until when no key sends us to the server: none when that moment has passed or there is no key.
    pub fn quiet_until(&self) -> Option<Instant> {
        let teks = self.teks.iter().filter(|tek| tek.leaves.is_none()).map(|tek| tek.soft);
        let all: Option<Vec<Instant>> = teks.chain(self.kek.iter().map(|kek| kek.soft)).collect();
        all?.into_iter().min()
    }

    /// The next timer.
    pub fn poll_timeout(&self) -> Option<Wakeup> {
        let mut next: Option<Wakeup> = None;
        let mut add =
            |at: Option<Instant>, why| next = Wakeup::earlier(next, at.map(|at| Wakeup { at, why }));
        for tek in &self.teks {
            add(Some(tek.expires), "end of a TEK");
            add(tek.leaves, "end of a replaced TEK");
            add(tek.soft, "a TEK ends soon");
            if let Sending::At(at) = tek.sending {
                add(Some(at), "a TEK encrypts");
            }
        }
        if let Some(kek) = &self.kek {
            add(Some(kek.expires), "end of the KEK");
            add(kek.soft, "the KEK ends soon");
        }
        for old in &self.old_keks {
            let end = if old.superseded { old.not_before.min(old.kek.expires) } else { old.kek.expires };
            add(Some(end), "end of a replaced KEK");
        }
        next
    }
}
