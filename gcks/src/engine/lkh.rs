//! The key tree of a group with `key-management = "lkh"` (RFC 6407 section 5.6.3, RFC 2627 section 5.4): a member holds the
//! keys from its leaf to the root, and the root is the KEK. Who is excluded knows none of the keys that the new ones
//! are sent under.
//!
//! The tree grows at its root, so a node keeps its place for good: level 0 are the leaves, and node (level, index) has
//! the children (level - 1, 2 x index) and (level - 1, 2 x index + 1). Only nodes above a taken leaf have keys.

use std::collections::{BTreeMap, BTreeSet};

use gdoi_proto::payload::{LkhDownload, LkhKey, LkhUpdate};
use gdoi_proto::registry::KekAlgorithm;
use gdoi_proto::secret::SecretBytes;
use ike::crypto::Cipher;
use ike::crypto::cipher::CipherKey;
use ike::io::Entropy;

use super::group::fresh_secret;

/// Octets of the IV in front of a key: one block.
const IV: usize = 16;

/// Levels above the leaves at most: as many leaves as a member number can name.
const DEPTH_MOST: u8 = 31;

/// A place in the tree.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Node {
    /// 0 for a leaf.
    pub level: u8,
    /// From the left, within its level.
    pub index: u32,
}

impl Node {
    /// The leaf of a member.
    pub const fn leaf(index: u32) -> Node {
        Node { level: 0, index }
    }

    /// True when a leaf lies below it.
    pub fn is_above(self, leaf: u32) -> bool {
        leaf.checked_shr(u32::from(self.level)).unwrap_or(0) == self.index
    }

    fn parent(self) -> Node {
        Node { level: self.level.saturating_add(1), index: self.index / 2 }
    }

    fn children(self) -> impl Iterator<Item = Node> {
        let level = self.level.checked_sub(1);
        level.into_iter().flat_map(move |level| {
            [0, 1].map(|side| Node { level, index: self.index.wrapping_mul(2).wrapping_add(side) })
        })
    }

    /// Its number on the wire: in-order, which growth at the root leaves as it is. Unique up to 32,768 leaves; above that
    /// numbers repeat and handles do not.
    #[allow(clippy::cast_possible_truncation)]
    pub fn wire_id(self) -> u16 {
        let in_order = (u64::from(self.index) * 2 + 1) << self.level.min(DEPTH_MOST);
        in_order as u16
    }
}

/// The key of a node: what tells it from its predecessors, and IV and key.
#[derive(Debug, Clone)]
pub struct NodeKey {
    /// Never given twice in a group.
    pub handle: u32,
    /// IV and key.
    pub data: SecretBytes,
}

impl NodeKey {
    /// IV and cipher key; none when the octets are neither AES-128 nor AES-256.
    pub fn parts(&self) -> Option<([u8; IV], SecretBytes)> {
        let (iv, key) = self.data.expose().split_first_chunk::<IV>()?;
        Some((*iv, SecretBytes::copy(key)))
    }

    /// Encrypts another key's data under this one, with the IV of this one.
    fn seal(&self, data: &SecretBytes) -> Option<Vec<u8>> {
        let (iv, key) = self.parts()?;
        let cipher = Cipher::with_key_len(key.len())?;
        Some(CipherKey::new(cipher, key)?.encrypt(&iv, data.expose()))
    }

    fn on_wire(&self, node: Node, data: Vec<u8>) -> LkhKey {
        LkhKey {
            id: node.wire_id(),
            key_type: u8::try_from(KekAlgorithm::Aes.number()).unwrap_or_default(),
            created: 0,
            expires: 0,
            handle: self.handle,
            data: data.into(),
        }
    }
}

/// What leads those who hold a key to the new root.
#[derive(Debug, Clone)]
pub struct Array {
    /// Whose key opens it: that of every leaf below.
    pub holder: Node,
    /// As sent.
    pub update: LkhUpdate,
}

/// What a change of the tree did.
#[derive(Debug, Default)]
pub struct Changed {
    /// Nodes whose key is new: to be written.
    pub made: BTreeSet<Node>,
    /// Nodes that have no key any more.
    pub gone: BTreeSet<Node>,
    /// What tells the others: each array leads to the new root.
    pub arrays: Vec<Array>,
}

/// The keys of a group's tree.
#[derive(Debug, Clone)]
pub struct Tree {
    key_octets: usize,
    depth: u8,
    nodes: BTreeMap<Node, NodeKey>,
    free: BTreeSet<u32>,
    next_leaf: u32,
    next_handle: u32,
}

impl Tree {
    /// A tree without members, whose root key is fresh. `key_octets` is 16 or 32: AES-192 makes key data that is not
    /// whole blocks.
    pub fn new(key_octets: usize, entropy: &mut dyn Entropy) -> Tree {
        Tree::for_members(key_octets, 2, entropy)
    }

    /// The same with room for `members` of them before it must grow.
    pub fn for_members(key_octets: usize, members: usize, entropy: &mut dyn Entropy) -> Tree {
        let mut tree = Tree {
            key_octets,
            depth: 0,
            nodes: BTreeMap::new(),
            free: BTreeSet::new(),
            next_leaf: 0,
            next_handle: 1,
        };
        let deep = usize::BITS - members.saturating_sub(1).leading_zeros();
        tree.depth = u8::try_from(deep).unwrap_or(DEPTH_MOST).clamp(1, DEPTH_MOST);
        tree.make(tree.root(), entropy);
        tree
    }

    /// A tree as it was written; none without a root key above every other. Handles go on after the highest: only
    /// [`Tree::replace`] takes keys out, and it makes the root last.
    pub fn restore(key_octets: usize, nodes: BTreeMap<Node, NodeKey>) -> Option<Tree> {
        let depth = nodes.keys().map(|node| node.level).max()?;
        let next_handle = nodes.values().map(|key| key.handle).max()?.checked_add(1)?;
        let fits = |(node, key): (&Node, &NodeKey)| {
            key.data.len() == key_octets.saturating_add(IV)
                && u64::from(node.index) < 1u64 << (depth.saturating_sub(node.level)).min(32)
        };
        let whole = (1..=DEPTH_MOST).contains(&depth)
            && nodes.iter().all(fits)
            && nodes.keys().all(|node| node.level == depth || nodes.contains_key(&node.parent()));
        if !whole {
            return None;
        }
        let leaves = nodes.keys().filter(|node| node.level == 0);
        let next_leaf = leaves.map(|leaf| leaf.index.saturating_add(1)).max().unwrap_or(0);
        let free = (0..next_leaf).filter(|index| !nodes.contains_key(&Node::leaf(*index))).collect();
        Some(Tree { key_octets, depth, nodes, free, next_leaf, next_handle })
    }

    /// The root: the KEK.
    pub fn root(&self) -> Node {
        Node { level: self.depth, index: 0 }
    }

    /// Places that have keys.
    pub fn nodes(&self) -> impl Iterator<Item = Node> + '_ {
        self.nodes.keys().copied()
    }

    /// Octets of each key.
    pub fn key_octets(&self) -> usize {
        self.key_octets
    }

    /// The key of a node.
    pub fn key(&self, node: Node) -> Option<&NodeKey> {
        self.nodes.get(&node)
    }

    /// Levels between a leaf and the root.
    pub fn depth(&self) -> u8 {
        self.depth
    }

    /// True when the next member needs a larger tree.
    pub fn is_full(&self) -> bool {
        self.free.is_empty() && u64::from(self.next_leaf) >= 1u64 << self.depth
    }

    /// Leaves that somebody has.
    pub fn leaves(&self) -> impl Iterator<Item = u32> + '_ {
        let last = Node::leaf(u32::MAX);
        self.nodes.range(..=last).map(|(leaf, _)| leaf.index)
    }

    /// Leaves there are in all.
    pub fn size(&self) -> u64 {
        1u64 << self.depth
    }

    /// Leaves nobody has.
    pub fn vacant(&self) -> u64 {
        self.size().saturating_sub(u64::from(self.next_leaf)).saturating_add(self.free.len() as u64)
    }

    /// True when it cannot grow any more.
    pub fn is_largest(&self) -> bool {
        self.depth >= DEPTH_MOST
    }

    /// The leaf that the next member gets.
    fn next(&self) -> Option<u32> {
        (!self.is_full()).then(|| self.free.first().copied().unwrap_or(self.next_leaf))
    }

    /// The root that had this IV and key: the one of now, or one that growth left below it.
    pub fn root_of(&self, iv: &[u8], key: &SecretBytes) -> Option<Node> {
        let roots = (1..=self.depth).rev().map(|level| Node { level, index: 0 });
        roots.into_iter().find(|root| {
            let data = self.nodes.get(root).and_then(|node| node.data.expose().split_first_chunk::<IV>());
            data.is_some_and(|(node_iv, node_key)| node_iv == iv && key.ct_eq(node_key))
        })
    }

    /// True when a leaf, or the one the next member gets, lies below `root`.
    pub fn reaches(&self, leaf: Option<u32>, root: Node) -> bool {
        leaf.or(self.next()).is_some_and(|leaf| u64::from(leaf) < 1u64 << root.level.min(DEPTH_MOST))
    }

    /// Gives a leaf to a new member; none when the tree is full. Its path is complete afterwards.
    pub fn join(&mut self, entropy: &mut dyn Entropy) -> Option<(u32, Changed)> {
        if self.is_full() {
            return None;
        }
        let leaf = match self.free.pop_first() {
            Some(leaf) => leaf,
            None => {
                let leaf = self.next_leaf;
                self.next_leaf = leaf.checked_add(1)?;
                leaf
            }
        };
        let mut changed = Changed::default();
        for node in self.up_from(Node::leaf(leaf)) {
            if !self.nodes.contains_key(&node) {
                self.make(node, entropy);
                changed.made.insert(node);
            }
        }
        Some((leaf, changed))
    }

    /// The keys of a member, leaf first and root last; none when nobody has the leaf.
    pub fn path(&self, leaf: u32) -> Option<LkhDownload> {
        self.path_to(leaf, self.root())
    }

    /// The same up to a root that growth left below the one of now.
    pub fn path_to(&self, leaf: u32, root: Node) -> Option<LkhDownload> {
        self.nodes.get(&Node::leaf(leaf))?;
        let keys = self
            .up_from(Node::leaf(leaf))
            .take_while(|node| node.level <= root.level)
            .map(|node| self.nodes.get(&node).map(|key| key.on_wire(node, key.data.expose().to_vec())))
            .collect::<Option<Vec<LkhKey>>>()?;
        Some(LkhDownload { keys })
    }

    /// Takes leaves out and replaces every key their holders know, the root in any case. Without leaves it is a new KEK
    /// for everybody. Arrays are at most one for each sibling on the way up (RFC 2627 section 5.4.1).
    pub fn replace(&mut self, leaves: &BTreeSet<u32>, entropy: &mut dyn Entropy) -> Changed {
        let mut changed = Changed::default();
        // The root comes last: of all handles it has the highest, which restore counts on.
        let mut stale = BTreeSet::from([self.root()]);
        for leaf in leaves.iter().map(|index| Node::leaf(*index)) {
            if self.nodes.remove(&leaf).is_some() {
                self.free.insert(leaf.index);
                changed.gone.insert(leaf);
                stale.extend(self.up_from(leaf).skip(1));
            }
        }
        // In order of level: a node is empty when its children are.
        for node in stale {
            if node != self.root() && node.children().all(|child| !self.nodes.contains_key(&child)) {
                self.nodes.remove(&node);
                changed.gone.insert(node);
            } else {
                self.make(node, entropy);
                changed.made.insert(node);
            }
        }
        let holders: Vec<Node> = changed
            .made
            .iter()
            .flat_map(|node| node.children())
            .filter(|child| self.nodes.contains_key(child) && !changed.made.contains(child))
            .collect();
        changed.arrays = holders.into_iter().filter_map(|holder| self.array_for(holder)).collect();
        changed
    }

    /// [`Tree::replace`] with one level more: the root of now gets a new one above it. None at the largest size.
    pub fn grow(&mut self, leaves: &BTreeSet<u32>, entropy: &mut dyn Entropy) -> Option<Changed> {
        self.depth = self.depth.checked_add(1).filter(|depth| *depth <= DEPTH_MOST)?;
        Some(self.replace(leaves, entropy))
    }

    /// The array for whoever holds `holder`: every key above it, each under the one before.
    fn array_for(&self, holder: Node) -> Option<Array> {
        let mut under = self.nodes.get(&holder)?;
        let (id, handle) = (holder.wire_id(), under.handle);
        let mut keys = Vec::new();
        for node in self.up_from(holder).skip(1) {
            let key = self.nodes.get(&node)?;
            keys.push(key.on_wire(node, under.seal(&key.data)?));
            under = key;
        }
        Some(Array { holder, update: LkhUpdate { id, handle, keys } })
    }

    fn up_from(&self, node: Node) -> impl Iterator<Item = Node> + use<> {
        let depth = self.depth;
        std::iter::successors(Some(node), move |node| (node.level < depth).then(|| node.parent()))
    }

    fn make(&mut self, node: Node, entropy: &mut dyn Entropy) {
        let data = fresh_secret(self.key_octets.saturating_add(IV), entropy);
        self.nodes.insert(node, NodeKey { handle: self.next_handle, data });
        self.next_handle = self.next_handle.wrapping_add(1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Counting(u64);

    impl Entropy for Counting {
        fn fill(&mut self, octets: &mut [u8]) {
            for chunk in octets.chunks_mut(8) {
                self.0 =
                    self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                chunk.copy_from_slice(&self.0.to_le_bytes()[..chunk.len()]);
            }
        }
    }

    fn full(members: u32, key_octets: usize) -> (Tree, Counting) {
        let mut entropy = Counting(7);
        let mut tree = Tree::new(key_octets, &mut entropy);
        for expected in 0..members {
            if tree.is_full() {
                tree.grow(&BTreeSet::new(), &mut entropy).unwrap();
            }
            assert_eq!(tree.join(&mut entropy).unwrap().0, expected);
        }
        (tree, entropy)
    }

    /// What a holder of the keys of `path` makes of the arrays: the last key it reaches, if it can open any.
    fn opens(path: &LkhDownload, arrays: &[Array]) -> Option<(u32, Vec<u8>)> {
        let mut reached = None;
        for Array { update, .. } in arrays {
            let holds = path.keys.iter().find(|key| (key.id, key.handle) == (update.id, update.handle));
            let Some(holds) = holds else { continue };
            let mut under = holds.data.to_vec();
            for key in &update.keys {
                let cipher = Cipher::with_key_len(under.len() - IV).unwrap();
                let (iv, octets) = under.split_first_chunk::<IV>().unwrap();
                let opener = CipherKey::new(cipher, SecretBytes::copy(octets)).unwrap();
                under = opener.decrypt(iv, &key.data).unwrap();
                reached = Some((key.handle, under.clone()));
            }
        }
        reached
    }

    #[test]
    fn the_arrays_of_the_vectors_are_sealed_octet_for_octet() {
        let vectors: serde_json::Value =
            serde_json::from_str(include_str!("../../../tests/data/vectors/gdoi-lkh.json")).unwrap();
        let key = |generation: u32, id: u16| {
            let data = &vectors[format!("node_key_data_generation_{generation}").as_str()][id.to_string()];
            let data = hex::decode(data.as_str().unwrap()).unwrap();
            NodeKey { handle: generation << 16 | u32::from(id), data: SecretBytes::new(data) }
        };
        for (array, (holder, above)) in vectors["update_arrays"].as_array().unwrap().iter().zip([
            (13, &[6, 3, 1][..]),
            (7, &[3, 1]),
            (2, &[1]),
        ]) {
            let octets = hex::decode(array.as_str().unwrap()).unwrap();
            let update = LkhUpdate::decode(&octets).unwrap();
            let mut under = key(1, holder);
            for (sent, id) in update.keys.iter().zip(above) {
                let next = key(2, *id);
                assert_eq!(under.seal(&next.data).unwrap(), sent.data.to_vec());
                under = next;
            }
        }
    }

    #[test]
    fn whoever_stays_reaches_the_new_root_and_whoever_left_opens_nothing() {
        for members in [1, 2, 3, 5, 8, 13, 64] {
            for key_octets in [16, 32] {
                for leaving in [vec![0], vec![members - 1], vec![0, members / 2, members - 1]] {
                    let (mut tree, mut entropy) = full(members, key_octets);
                    let paths: Vec<LkhDownload> = (0..members).map(|leaf| tree.path(leaf).unwrap()).collect();
                    let old_root = tree.key(tree.root()).unwrap().handle;
                    let leaving: BTreeSet<u32> = leaving.into_iter().collect();
                    let changed = tree.replace(&leaving, &mut entropy);
                    let root = tree.key(tree.root()).unwrap();
                    assert_ne!(root.handle, old_root);
                    for (leaf, path) in (0..).zip(&paths) {
                        let reached = opens(path, &changed.arrays);
                        if leaving.contains(&leaf) {
                            assert_eq!(reached, None, "leaf {leaf} of {members} left");
                        } else {
                            let (handle, data) = reached.unwrap();
                            assert_eq!((handle, data.as_slice()), (root.handle, root.data.expose()));
                            let above = changed.arrays.iter().filter(|array| array.holder.is_above(leaf));
                            assert_eq!(above.count(), 1, "one array for leaf {leaf}, and no other");
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn a_new_root_for_everybody_takes_two_arrays_of_one_key() {
        let (mut tree, mut entropy) = full(64, 16);
        let changed = tree.replace(&BTreeSet::new(), &mut entropy);
        assert_eq!(changed.arrays.iter().map(|array| array.update.keys.len()).collect::<Vec<_>>(), [1, 1]);
        assert_eq!(changed.made.len(), 1);
    }

    #[test]
    fn growth_leaves_the_numbers_of_nodes_and_reaches_everybody() {
        let (mut tree, mut entropy) = full(4, 32);
        assert!(tree.is_full() && tree.join(&mut entropy).is_none());
        let before: Vec<LkhDownload> = (0..4).map(|leaf| tree.path(leaf).unwrap()).collect();
        let changed = tree.grow(&BTreeSet::new(), &mut entropy).unwrap();
        for (leaf, path) in (0..).zip(&before) {
            let (handle, _) = opens(path, &changed.arrays).unwrap();
            assert_eq!(handle, tree.key(tree.root()).unwrap().handle);
            let after = tree.path(leaf).unwrap();
            assert_eq!(after.keys[..path.keys.len()], path.keys[..]);
        }
        assert_eq!(tree.join(&mut entropy).unwrap().0, 4);
    }

    #[test]
    fn a_path_to_the_root_before_growth_is_what_a_member_of_then_was_given() {
        let (mut tree, mut entropy) = full(4, 16);
        let (before, root) = (tree.path(3).unwrap(), tree.key(tree.root()).unwrap().parts().unwrap());
        tree.grow(&BTreeSet::new(), &mut entropy).unwrap();
        let known = tree.root_of(&root.0, &root.1).unwrap();
        assert_eq!((known.level, tree.path_to(3, known)), (2, Some(before)));
        assert!(tree.reaches(Some(3), known) && !tree.reaches(None, known), "the next leaf is not below it");
        tree.replace(&BTreeSet::from([0]), &mut entropy);
        assert_eq!(tree.root_of(&root.0, &root.1), None, "its key is replaced");
    }

    #[test]
    fn a_tree_grows_while_it_loses_a_member() {
        let (mut tree, mut entropy) = full(8, 16);
        let paths: Vec<LkhDownload> = (0..8).map(|leaf| tree.path(leaf).unwrap()).collect();
        let changed = tree.grow(&BTreeSet::from([5]), &mut entropy).unwrap();
        let root = tree.key(tree.root()).unwrap().handle;
        for (leaf, path) in (0..).zip(&paths) {
            let reached = opens(path, &changed.arrays).map(|(handle, _)| handle);
            assert_eq!(reached, (leaf != 5).then_some(root));
        }
        assert_eq!((tree.vacant(), tree.leaves().count()), (9, 7));
    }

    #[test]
    fn a_leaf_is_given_again_with_another_key_and_handles_never_repeat() {
        let (mut tree, mut entropy) = full(3, 16);
        let first = tree.path(1).unwrap();
        tree.replace(&BTreeSet::from([1]), &mut entropy);
        assert!(tree.path(1).is_none());
        assert_eq!(tree.join(&mut entropy).unwrap().0, 1);
        let second = tree.path(1).unwrap();
        for (old, new) in first.keys.iter().zip(&second.keys) {
            assert!(old.handle < new.handle && old.data != new.data);
        }
    }

    #[test]
    fn numbers_are_unique_below_32768_leaves() {
        let mut seen = BTreeSet::new();
        for level in 0..=15u8 {
            for index in 0..1u32 << (15 - level) {
                assert!(seen.insert(Node { level, index }.wire_id()));
            }
        }
    }

    #[test]
    fn a_hundred_thousand_members_lose_one_in_eight_kilobytes_of_arrays() {
        for (key_octets, most) in [(16, 8_000), (32, 10_500)] {
            let (mut tree, mut entropy) = full(100_000, key_octets);
            let changed = tree.replace(&BTreeSet::from([54_321]), &mut entropy);
            let octets: usize = changed.arrays.iter().map(|array| array.update.encode().len()).sum();
            assert!(octets <= most, "{octets} octets with {key_octets} octets of key");
        }
    }

    #[test]
    fn a_tree_comes_back_as_it_was_and_a_broken_one_does_not() {
        let (mut tree, mut entropy) = full(9, 16);
        tree.replace(&BTreeSet::from([2, 3]), &mut entropy);
        let nodes = tree.nodes.clone();
        let mut back = Tree::restore(16, nodes.clone()).unwrap();
        assert_eq!((back.path(8), back.next_handle), (tree.path(8), tree.next_handle));
        assert_eq!(back.join(&mut entropy).unwrap().0, 2);
        let refused = |change: &dyn Fn(&mut BTreeMap<Node, NodeKey>)| {
            let mut nodes = nodes.clone();
            change(&mut nodes);
            Tree::restore(16, nodes).is_none()
        };
        assert!(refused(&|nodes| nodes.clear()));
        assert!(refused(&|nodes| drop(nodes.remove(&Node { level: 2, index: 0 }))));
        assert!(refused(&|nodes| {
            let key = nodes.values().next().cloned().unwrap();
            nodes.insert(Node { level: 0, index: 99 }, key);
        }));
        assert!(Tree::restore(32, nodes).is_none());
    }
}
