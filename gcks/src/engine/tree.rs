//! What a group does with its key tree (`lkh.rs`): a leaf for everybody who joins, a new root for every new KEK, and
//! nothing of it for whoever left. Without `key-management = "lkh"` there is no tree, and a KEK is a KEK.
//!
//! Who is no member any more still holds the keys from its leaf up, whether it was expelled or only stayed silent: its leaf
//! stays taken until the next new KEK, which shuts it out.

use std::collections::BTreeSet;

use gdoi_proto::ids::{KekSpi, SeqNumber};
use gdoi_proto::secret::SecretBytes;
use ike::io::{Entropy, Now};

use super::durable::Change;
use super::group::{Group, Kek, Terms, fresh_secret};
use super::lkh::{Array, Changed, Node, Tree};
use super::member::{Member, MemberKey};
use super::rekey::make_kek;
use super::roster::{MemberNumber, NumberSet};

/// Leaves of a new tree: without a `member-threshold`, and at most.
const FIRST_LEAVES: (usize, usize) = (16, 1024);

/// The one part of the leaves that is kept free for joiners, so that none waits for the tree to grow.
const SPARE: u64 = 8;

impl Group {
    /// The leaf of a member.
    pub(super) fn leaf_of(&self, identity: &MemberKey) -> Option<u32> {
        let leaf = self.members.get(identity)?.leaf?;
        self.tree.as_ref()?.key(Node::leaf(leaf)).map(|_| leaf)
    }

    /// The key of a member's leaf, without IV: that of its acknowledgements (RFC 8263 section 4.2).
    pub(super) fn leaf_key(&self, number: MemberNumber) -> Option<SecretBytes> {
        let leaf = self.members.at_number(number)?.leaf?;
        Some(self.tree.as_ref()?.key(Node::leaf(leaf))?.parts()?.1)
    }

    /// Up to which root a member that was offered these terms is given its path: the tree may have grown meanwhile. None
    /// when their KEK is replaced, or no leaf lies below it: it asks again. The inner none: there is no tree.
    pub(super) fn root_for(&self, identity: &MemberKey, terms: &Terms) -> Option<Option<Node>> {
        let Some(tree) = &self.tree else { return Some(None) };
        let kek = terms.keys.kek.as_ref()?;
        let root = tree.root_of(&kek.iv, &kek.key)?;
        tree.reaches(self.leaf_of(identity), root).then_some(Some(root))
    }

    /// The leaf of a joiner: the one it has, or a free one. None when the tree is full.
    pub(super) fn seat(
        &mut self,
        identity: &MemberKey,
        entropy: &mut dyn Entropy,
        changes: &mut Vec<Change>,
    ) -> Option<u32> {
        if let Some(leaf) = self.leaf_of(identity) {
            return Some(leaf);
        }
        let (leaf, changed) = self.tree.as_mut()?.join(entropy)?;
        changes.extend(self.node_rows(&changed));
        Some(leaf)
    }

    /// Leaves whose holders are members no more.
    pub(super) fn left_leaves(&self) -> BTreeSet<u32> {
        let mut left: BTreeSet<u32> = self.tree.iter().flat_map(Tree::leaves).collect();
        for leaf in self.members.iter().filter_map(|(_, member)| member.leaf) {
            left.remove(&leaf);
        }
        left
    }

    /// Leaves that should be free.
    fn spare(&self, tree: &Tree) -> u64 {
        if tree.is_largest() {
            return 0;
        }
        let spare = (tree.size() / SPARE).max(1);
        let more = self.settings.member_threshold.map(|most| most.saturating_sub(self.members.len()) as u64);
        more.map_or(spare, |more| more.min(spare))
    }

    /// True when joiners need leaves: those of members that left, or a larger tree. Either takes a new KEK.
    pub(super) fn lacks_leaves(&self) -> bool {
        self.tree.as_ref().is_some_and(|tree| tree.vacant() < self.spare(tree))
    }

    /// A fresh rekey SA with counter 0, and the arrays that lead the members of a tree to it; `everybody` leaves the tree.
    pub(super) fn new_kek(
        &mut self,
        now: Now,
        everybody: bool,
        entropy: &mut dyn Entropy,
        changes: &mut Vec<Change>,
    ) -> Option<(Kek, Vec<Array>)> {
        let communication = self.settings.communication.clone()?;
        let signed = (communication.signing(), self.public_key.clone()?);
        let mut spi = [0; 16];
        while spi[..8] == [0; 8] || spi[8..] == [0; 8] {
            entropy.fill(&mut spi);
        }
        let key_octets = communication.cipher.key_len();
        let (iv, key, arrays) = if communication.lkh {
            let changed = self.new_root(key_octets, everybody, entropy);
            changes.extend(self.node_rows(&changed));
            let (iv, key) = self.tree.as_ref().and_then(|tree| tree.key(tree.root())?.parts())?;
            (iv, key, changed.arrays)
        } else {
            let mut iv = [0; 16];
            entropy.fill(&mut iv);
            (iv, fresh_secret(key_octets, entropy), Vec::new())
        };
        let ends_unix = now.unix_seconds + communication.lifetime.as_secs();
        let life = (now.at, now.at + communication.lifetime, ends_unix);
        let kek = make_kek(KekSpi(spi), iv, key, SeqNumber(0), life, communication.ack_request(), signed)?;
        let channel = communication.way.channel().map(|channel| channel.group);
        Some((Kek { generation: self.next_generation(), channel, ..kek }, arrays))
    }

    /// The members that hold the key of one of these nodes; everybody without nodes.
    pub(super) fn readers(&self, holders: &[Node], besides: impl Fn(&Member) -> bool) -> NumberSet {
        self.members.numbers_where(|member| besides(member) && reads(holders, member.leaf))
    }

    fn new_root(&mut self, key_octets: usize, everybody: bool, entropy: &mut dyn Entropy) -> Changed {
        let mut left = self.left_leaves();
        let spare = self.tree.as_ref().map_or(0, |tree| self.spare(tree));
        if let Some(tree) = &mut self.tree {
            if everybody {
                left = tree.leaves().collect();
            }
            let room = tree.vacant().saturating_add(left.len() as u64);
            let grown = if room < spare { tree.grow(&left, entropy) } else { None };
            return grown.unwrap_or_else(|| tree.replace(&left, entropy));
        }
        let (usual, most) = FIRST_LEAVES;
        let members = self.settings.member_threshold.unwrap_or(usual).min(most);
        let tree = Tree::for_members(key_octets, members, entropy);
        let changed = Changed { made: BTreeSet::from([tree.root()]), ..Changed::default() };
        self.tree = Some(tree);
        changed
    }
}

/// True when the holder of a leaf can read a PUSH for the holders of these nodes; without nodes everybody can.
pub(super) fn reads(holders: &[Node], leaf: Option<u32>) -> bool {
    holders.is_empty() || leaf.is_some_and(|leaf| holders.iter().any(|node| node.is_above(leaf)))
}
