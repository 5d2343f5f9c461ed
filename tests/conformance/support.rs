//! Reading of the vector files and small helpers.

use gdoi_proto::ids::{Cookie, CookiePair};
use gdoi_proto::secret::SecretBytes;
use serde_json::Value;

/// A vector file of `tests/data/vectors`.
pub fn vectors(name: &str) -> Value {
    let path = format!("{}/tests/data/vectors/{name}.json", env!("CARGO_MANIFEST_DIR"));
    let text = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path}: {error}"));
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// Octets of a hexadecimal field.
pub fn octets(value: &Value, field: &str) -> Vec<u8> {
    hex::decode(text(value, field)).unwrap_or_else(|error| panic!("{field}: {error}"))
}

/// A text field.
pub fn text<'a>(value: &'a Value, field: &str) -> &'a str {
    value[field].as_str().unwrap_or_else(|| panic!("no text field {field}"))
}

/// Objects of an array field.
pub fn list<'a>(value: &'a Value, field: &str) -> &'a [Value] {
    value[field].as_array().unwrap_or_else(|| panic!("no array field {field}"))
}

/// A secret of a hexadecimal field.
pub fn secret(value: &Value, field: &str) -> SecretBytes {
    SecretBytes::new(octets(value, field))
}

/// The cookie pair of `cky_i` and `cky_r`.
pub fn cookies(value: &Value) -> CookiePair {
    let cookie = |field| Cookie(octets(value, field).try_into().expect("8 octets"));
    CookiePair { initiator: cookie("cky_i"), responder: cookie("cky_r") }
}

/// Exactly `N` octets of a field.
pub fn array<const N: usize>(value: &Value, field: &str) -> [u8; N] {
    octets(value, field).try_into().unwrap_or_else(|_| panic!("{field} is not {N} octets"))
}
