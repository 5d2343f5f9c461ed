//! Members that leave by the operator's will. An expelled one may come back; a revoked one may not, and can open nothing
//! of what is sent once the others have changed their keys.
//!
//! ```text
//! lkh    PUSH 1 under the old KEK: arrays that lead everybody else to the new KEK
//!        PUSH 2 under the new KEK: new TEKs (forward access control, RFC 6407 section 7.4.1)
//! flat   the KEK cannot be replaced without it: Deletes of everything, and the rest registers again
//! ```

use std::net::{IpAddr, SocketAddr};

use ctl::event::Event;
use gdoi_proto::payload::Identification;
use gdoi_proto::registry::IdType;
use ike::identity::address_identity;
use ike::io::{Entropy, Now};

use super::durable::Change;
use super::group::{Group, GroupOutput};
use super::io::Outcome;
use super::member::{MemberKey, member_key};
use super::peers::Asker;

impl Group {
    /// Out of the list; the others get new keys when `rekey-on-leave`.
    ///
    /// # Errors
    /// For the operator: no such member, or the group cannot rekey yet.
    pub fn expel(&mut self, now: Now, text: &str, entropy: &mut dyn Entropy) -> Result<Outcome, String> {
        let key = self.find_member(text)?.ok_or_else(|| format!("no member {text}"))?;
        self.must_be_ready()?;
        let mut changes = self.remove_member(&key, "expelled by the operator");
        changes.extend(self.is_overheard());
        if !self.settings.rekey_on_leave {
            self.out.push_back(GroupOutput::Persist(changes));
            return Ok(
                format!("{key} expelled; rekey-on-leave is off, it holds its keys until they end").into()
            );
        }
        let started = self.rekey_all(now, "member expelled", changes, entropy);
        Ok(Outcome { text: format!("{key} expelled; {}", started.text), ..started })
    }

    /// Somebody who is no member any more holds the KEK and may listen to the multicast group: unless key arrays shut it
    /// out, PUSHes under this KEK go to each member alone from now on.
    pub(super) fn is_overheard(&mut self) -> Option<Change> {
        let shut_out = self.tree.is_some() && self.settings.rekey_on_leave;
        let kek = self.kek.as_mut().filter(|kek| kek.channel.is_some() && !shut_out)?;
        kek.overheard = true;
        let kek = kek.clone();
        Some(self.kek_row(&kek))
    }

    /// Blocks an identity for good and changes the keys in one transaction, so that no restart comes in between.
    ///
    /// # Errors
    /// For the operator: nobody or several are meant, it is revoked already, or the group cannot rekey yet.
    pub fn revoke(&mut self, now: Now, text: &str, entropy: &mut dyn Entropy) -> Result<Outcome, String> {
        // One that is no member now may be one again, and may still hold keys.
        let key = self.find_member(text)?.unwrap_or_else(|| identity(text));
        if self.revoked.contains_key(&key) {
            return Err(format!("{key} is revoked already"));
        }
        self.must_be_ready()?;
        let member = self.members.get(&key).map(|member| (member.local, member.peer));
        let held = self.held();
        self.revoked.insert(key.clone(), now.unix_seconds);
        let mut changes = vec![self.revoked_row(&key, now.unix_seconds)];
        changes.extend(self.remove_member(&key, "revoked by the operator"));
        self.event(Event::MemberRevoked { group: self.settings.name.clone(), member: key.to_string() });
        let known = if member.is_some() { "" } else { " (no member now)" };
        let blocked = format!("{key}{known} revoked: its registrations are refused from now on");
        let Some(communication) = self.settings.communication.clone() else {
            self.out.push_back(GroupOutput::Persist(changes));
            return Ok(format!("{blocked}; the group has no KEK: {held} stay until their life ends").into());
        };
        let started = if communication.lkh {
            let started = self.rekey_all(now, "member revoked", changes, entropy);
            let text = format!(
                "{blocked}\nlast keys it held: {held}\n{}\nthe others send under the new TEKs in {} s; nobody else registers again",
                started.text, communication.activation_delay,
            );
            Outcome { text, ..started }
        } else {
            let farewell: Vec<(SocketAddr, SocketAddr)> = member.into_iter().collect();
            let started = self.clean_slate(now, "member revoked", farewell, changes, entropy);
            let text = format!(
                "{blocked}\nlast keys it held: {held}\n{}\nthe price of key-management = \"flat\": all {} others lose their keys now and \
                 register again within 10 s, without traffic until then; \"lkh\" locks out one alone",
                started.text,
                self.members.len(),
            );
            Outcome { text, ..started }
        };
        Ok(started)
    }

    /// Lets a revoked identity register again.
    ///
    /// # Errors
    /// For the operator: nobody of that name is revoked; who is.
    pub fn unrevoke(&mut self, text: &str) -> Result<Outcome, String> {
        let Some(key) = self.revoked.keys().find(|key| key.to_string() == text).cloned() else {
            let names: Vec<String> = self.revoked.keys().map(ToString::to_string).collect();
            let names = if names.is_empty() { "nobody".to_owned() } else { names.join(", ") };
            return Err(format!("{text} is not revoked; revoked: {names}"));
        };
        self.revoked.remove(&key);
        let row = self.revoked_gone(&key);
        self.out.push_back(GroupOutput::Persist(vec![row]));
        self.event(Event::MemberUnrevoked { group: self.settings.name.clone(), member: key.to_string() });
        Ok(format!("{key} may register again").into())
    }

    /// Who may not register, and since when, in Unix seconds.
    pub fn revoked(&self) -> impl Iterator<Item = (&MemberKey, u64)> {
        self.revoked.iter().map(|(key, since)| (key, *since))
    }

    pub(super) fn refuse_revoked(&mut self, asker: &Asker) {
        let reason = "revoked by the operator; `gdoictl server unrevoke` lets it in again";
        self.refuse(asker, reason.to_owned());
    }

    /// A rekey can be signed, or the group has none.
    ///
    /// # Errors
    /// For the operator: the signing key is still being made or read.
    pub(super) fn must_be_ready(&self) -> Result<(), String> {
        if !self.is_ready() {
            return Err("the group's signing key is not ready".to_owned());
        }
        Ok(())
    }

    /// The keys in use, for the report.
    fn held(&self) -> String {
        let kek = self.kek.as_ref().map(|kek| format!("KEK {} up to SEQ {}", kek.spi, kek.seq));
        let teks: Vec<String> = self.teks.iter().map(|tek| tek.spi.to_string()).collect();
        kek.into_iter().chain([format!("TEKs [{}]", teks.join(" "))]).collect::<Vec<_>>().join(", ")
    }

    /// New TEKs for every SA, and a new KEK.
    pub(super) fn rekey_all(
        &mut self,
        now: Now,
        why: &'static str,
        changes: Vec<Change>,
        entropy: &mut dyn Entropy,
    ) -> Outcome {
        let sas = self.settings.sas.iter().map(|sa| sa.name.clone()).collect();
        let kek = self.settings.communication.is_some();
        let rekey = self.next_rekey();
        self.rekey(now, sas, kek, (rekey, why), changes, entropy)
    }
}

/// The identity that a text as `show` prints it names.
pub(super) fn identity(text: &str) -> MemberKey {
    member_key(match text.parse::<IpAddr>() {
        Ok(address) => address_identity(address),
        Err(_) if text.contains('@') => Identification::new(IdType::UserFqdn, text.as_bytes()),
        Err(_) => Identification::new(IdType::Fqdn, text.as_bytes()),
    })
}
