//! Bounded reading and writing: the only code that touches octets by position. nom does the reading.

use nom::Parser;
use nom::bytes::complete::take;
use nom::error::Error as NomError;
use nom::number::complete::{be_u8, be_u16, be_u32};

use crate::error::DecodeError;
use crate::registry::PayloadType;

/// Reads named fields from a payload and never past its end.
#[derive(Debug, Clone)]
pub struct Reader<'a> {
    payload: PayloadType,
    rest: &'a [u8],
    offset: usize,
    field: usize,
}

impl<'a> Reader<'a> {
    /// Reads `octets`, the body of `payload`; offsets in errors start at 0.
    pub fn new(payload: PayloadType, octets: &'a [u8]) -> Reader<'a> {
        Reader::at(payload, octets, 0)
    }

    /// Like [`Reader::new`] with offsets that start at `offset`.
    pub fn at(payload: PayloadType, octets: &'a [u8], offset: usize) -> Reader<'a> {
        Reader { payload, rest: octets, offset, field: offset }
    }

    /// The payload named in errors.
    pub fn payload(&self) -> PayloadType {
        self.payload
    }

    /// Where the next field starts.
    pub fn offset(&self) -> usize {
        self.offset
    }

    /// Octets not read yet.
    pub fn remaining(&self) -> usize {
        self.rest.len()
    }

    /// True when everything is read.
    pub fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    fn parse<T>(
        &mut self,
        field: &'static str,
        needed: usize,
        mut parser: impl Parser<&'a [u8], Output = T, Error = NomError<&'a [u8]>>,
    ) -> Result<T, DecodeError> {
        match parser.parse(self.rest) {
            Ok((rest, value)) => {
                self.field = self.offset;
                self.offset = self.offset.saturating_add(self.rest.len().saturating_sub(rest.len()));
                self.rest = rest;
                Ok(value)
            }
            Err(_) => Err(DecodeError::Truncated {
                payload: self.payload,
                field,
                offset: self.offset,
                needed,
                had: self.rest.len(),
            }),
        }
    }

    /// One octet.
    pub fn u8(&mut self, field: &'static str) -> Result<u8, DecodeError> {
        self.parse(field, 1, be_u8)
    }

    /// Two octets, big-endian.
    pub fn u16(&mut self, field: &'static str) -> Result<u16, DecodeError> {
        self.parse(field, 2, be_u16)
    }

    /// Four octets, big-endian.
    pub fn u32(&mut self, field: &'static str) -> Result<u32, DecodeError> {
        self.parse(field, 4, be_u32)
    }

    /// `count` octets.
    pub fn octets(&mut self, field: &'static str, count: usize) -> Result<&'a [u8], DecodeError> {
        self.parse(field, count, take(count))
    }

    /// `N` octets as an array.
    pub fn array<const N: usize>(&mut self, field: &'static str) -> Result<[u8; N], DecodeError> {
        let mut out = [0; N];
        out.copy_from_slice(self.octets(field, N)?);
        Ok(out)
    }

    /// The generic payload header and a reader over the body it announces: type of the next payload, body
    /// (RFC 2408 section 3.2).
    ///
    /// # Errors
    /// RESERVED not zero, a length below 4 or past the end.
    pub fn generic(&mut self) -> Result<(PayloadType, Reader<'a>), DecodeError> {
        let next = PayloadType::from_number(self.u8("next payload")?);
        let reserved = self.u8("RESERVED")?;
        if reserved != 0 {
            return Err(self.refuse("RESERVED", reserved, "must be 0"));
        }
        let length = self.u16("payload length")?;
        let Some(body) = usize::from(length).checked_sub(4) else {
            return Err(self.refuse("payload length", length, "at least 4"));
        };
        Ok((next, self.sub("payload body", body)?))
    }

    /// Everything that is left.
    pub fn rest(&mut self) -> &'a [u8] {
        self.offset = self.offset.saturating_add(self.rest.len());
        std::mem::take(&mut self.rest)
    }

    /// A reader over the next `count` octets, which it takes from this one.
    pub fn sub(&mut self, field: &'static str, count: usize) -> Result<Reader<'a>, DecodeError> {
        let offset = self.offset;
        Ok(Reader::at(self.payload, self.octets(field, count)?, offset))
    }

    /// The same reader, naming another payload in errors.
    pub fn within(mut self, payload: PayloadType) -> Reader<'a> {
        self.payload = payload;
        self
    }

    /// Succeeds when everything is read.
    pub fn finish(self) -> Result<(), DecodeError> {
        if self.rest.is_empty() {
            return Ok(());
        }
        Err(DecodeError::Trailing { payload: self.payload, offset: self.offset, had: self.rest.len() })
    }

    /// The error for a value that is not allowed in `field`, the one read last.
    pub fn refuse(&self, field: &'static str, value: impl Into<u64>, rule: &'static str) -> DecodeError {
        DecodeError::Value { payload: self.payload, field, offset: self.field, value: value.into(), rule }
    }

    /// The error for a structure that breaks `rule` here.
    pub fn misplaced(&self, rule: &'static str) -> DecodeError {
        DecodeError::Structure { payload: self.payload, offset: self.offset, rule }
    }
}

/// Writes fields; lengths are filled in afterwards.
#[derive(Debug, Default)]
pub struct Writer {
    octets: Vec<u8>,
}

/// A place for a 16-bit length that [`Writer::end`] fills in.
#[derive(Debug)]
#[must_use]
pub struct LengthMark {
    at: usize,
    from: usize,
}

impl Writer {
    /// An empty writer.
    pub fn new() -> Writer {
        Writer::default()
    }

    /// Octets written so far.
    pub fn len(&self) -> usize {
        self.octets.len()
    }

    /// True before the first octet.
    pub fn is_empty(&self) -> bool {
        self.octets.is_empty()
    }

    /// One octet.
    pub fn u8(&mut self, value: u8) {
        self.octets.push(value);
    }

    /// Two octets, big-endian.
    pub fn u16(&mut self, value: u16) {
        self.octets.extend_from_slice(&value.to_be_bytes());
    }

    /// Four octets, big-endian.
    pub fn u32(&mut self, value: u32) {
        self.octets.extend_from_slice(&value.to_be_bytes());
    }

    /// Octets as they are.
    pub fn octets(&mut self, octets: &[u8]) {
        self.octets.extend_from_slice(octets);
    }

    /// Reserves a 16-bit length that will count from `before` octets ahead of it (2 in a generic payload
    /// header, whose length covers the two octets in front of the length field).
    pub fn length16(&mut self, before: usize) -> LengthMark {
        let at = self.octets.len();
        self.u16(0);
        LengthMark { at, from: at.saturating_sub(before) }
    }

    /// Fills in the length reserved by `mark`. A length beyond 65535 saturates; encoders keep below it.
    pub fn end(&mut self, mark: LengthMark) {
        let length = u16::try_from(self.octets.len().saturating_sub(mark.from)).unwrap_or(u16::MAX);
        if let Some(field) = self.octets.get_mut(mark.at..mark.at.saturating_add(2)) {
            field.copy_from_slice(&length.to_be_bytes());
        }
    }

    /// A generic payload header that announces `next`, and the body that `body` writes.
    pub fn generic(&mut self, next: PayloadType, body: impl FnOnce(&mut Writer)) {
        self.u8(next.number());
        self.u8(0);
        let length = self.length16(2);
        body(self);
        self.end(length);
    }

    /// What was written.
    pub fn finish(self) -> Vec<u8> {
        self.octets
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn generic_header_is_written_and_read_back() {
        let mut w = Writer::new();
        w.generic(PayloadType::Nonce, |w| w.octets(&[1, 2, 3]));
        let octets = w.finish();
        assert_eq!(octets, [10, 0, 0, 7, 1, 2, 3]);
        let mut r = Reader::new(PayloadType::Ke, &octets);
        let (next, mut body) = r.generic().unwrap();
        assert_eq!((next, body.rest()), (PayloadType::Nonce, &[1, 2, 3][..]));
        assert!(r.is_empty());
    }

    #[test]
    fn generic_header_refuses_short_long_and_reserved() {
        for bad in
            [&[0, 0, 0, 3][..], &[0, 0, 0, 0], &[0, 1, 0, 4], &[0, 0, 0, 5], &[0, 0, 255, 255], &[0, 0, 0]]
        {
            assert!(Reader::new(PayloadType::Sa, bad).generic().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn errors_name_where_the_field_starts() {
        let mut r = Reader::at(PayloadType::Seq, &[0, 0, 9], 100);
        r.u16("first").unwrap();
        r.u8("second").unwrap();
        let DecodeError::Value { offset, .. } = r.refuse("second", 9u8, "no") else { panic!() };
        assert_eq!(offset, 102);
        let Err(DecodeError::Truncated { offset, needed, had, .. }) = r.u32("third") else { panic!() };
        assert_eq!((offset, needed, had), (103, 4, 0));
    }
}
