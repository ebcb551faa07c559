//! The CBOR envelope: one map with integer keys, after EAT (RFC 9711). Its grammar is `docs/evidence.cddl`.
//!
//! Reading is strict: the profile first, no key twice, none that is not known, nothing after the map.

use ciborium::Value;

use super::{Attestation, Event, Evidence, EvidenceError, EvidenceKind, MAX_EVIDENCE_BYTES};
use super::{SnpEvidence, SoftwareEvidence, TdxEvidence};
use crate::bytes::Bytes48;
use crate::tdx::parse_collateral;

/// `eat_profile` (RFC 9711 §4.3.2), which tells an envelope from any other CBOR.
pub(super) const PROFILE: &str = "tag:cloak.dev,2026:evidence-1";
const EAT_PROFILE: i64 = 265;

/// Keys in the range that RFC 8392 leaves to private use.
const KIND: i64 = -75000;
const ATTESTATION: i64 = -75001;
const VEK: i64 = -75002;
const AUTHORITY: i64 = -75003;
const ROOT: i64 = -75004;
const CRLS: i64 = -75005;
const COLLATERAL: i64 = -75006;
const HOST_KEY: i64 = -75007;
const MANIFEST: i64 = -75008;
const EVENT_LOG: i64 = -75009;
const RUNTIME_DATA: i64 = -75010;

/// Deep enough for the grammar, shallow enough for any stack.
const MAX_DEPTH: usize = 8;
const MAX_EVENTS: usize = 10_000;

impl Evidence {
    /// Reads an envelope.
    ///
    /// # Errors
    /// [`EvidenceError`] for what the grammar does not allow.
    pub fn from_cbor(bytes: &[u8]) -> Result<Self, EvidenceError> {
        if bytes.len() > MAX_EVIDENCE_BYTES {
            return Err(EvidenceError::Size(bytes.len()));
        }
        let mut rest = bytes;
        let value: Value = ciborium::de::from_reader_with_recursion_limit(&mut rest, MAX_DEPTH)
            .map_err(|error| EvidenceError::Cbor(error.to_string()))?;
        if !rest.is_empty() {
            return Err(EvidenceError::Cbor(format!("{} bytes after the map", rest.len())));
        }
        let mut fields = Fields::new(value)?;
        if fields.text(EAT_PROFILE, "profile")? != PROFILE {
            return Err(problem("profile", format!("expected {PROFILE:?}")));
        }
        let kind: EvidenceKind = fields.text(KIND, "kind")?.parse()?;
        let evidence = Self {
            attestation: attestation(&mut fields, kind)?,
            manifest: fields.optional_bytes(MANIFEST, "manifest")?,
            event_log: events(fields.take(EVENT_LOG))?,
            runtime_data: fields.optional_bytes(RUNTIME_DATA, "runtime-data")?,
        };
        fields.finish()?;
        Ok(evidence)
    }

    /// Writes an envelope.
    pub fn to_cbor(&self) -> Vec<u8> {
        let mut map = vec![
            (EAT_PROFILE, Value::from(PROFILE)),
            (KIND, Value::from(self.kind().as_str())),
        ];
        match &self.attestation {
            Attestation::SevSnp(snp) | Attestation::SimulatedSnp(snp) => push_snp(&mut map, snp),
            Attestation::Tdx(tdx) | Attestation::SimulatedTdx(tdx) => push_tdx(&mut map, tdx),
            Attestation::Software(software) => {
                map.push((ATTESTATION, software.statement.clone().into()));
                map.push((HOST_KEY, software.key.clone().into()));
            }
        }
        push_optional(&mut map, MANIFEST, self.manifest.as_ref());
        if !self.event_log.is_empty() {
            map.push((
                EVENT_LOG,
                Value::Array(self.event_log.iter().map(event_value).collect()),
            ));
        }
        push_optional(&mut map, RUNTIME_DATA, self.runtime_data.as_ref());
        let map = map.into_iter().map(|(key, value)| (key.into(), value)).collect();
        let mut bytes = Vec::new();
        // Writing to a vector cannot fail, and every value above has a CBOR form.
        let _ = ciborium::into_writer(&Value::Map(map), &mut bytes);
        bytes
    }
}

fn attestation(fields: &mut Fields, kind: EvidenceKind) -> Result<Attestation, EvidenceError> {
    Ok(match kind {
        EvidenceKind::SevSnp => Attestation::SevSnp(snp(fields)?),
        EvidenceKind::SimulatedSnp => Attestation::SimulatedSnp(snp(fields)?),
        EvidenceKind::Tdx => Attestation::Tdx(tdx(fields)?),
        EvidenceKind::SimulatedTdx => Attestation::SimulatedTdx(tdx(fields)?),
        EvidenceKind::Software => Attestation::Software(SoftwareEvidence {
            statement: fields.bytes(ATTESTATION, "attestation")?,
            key: fields.bytes(HOST_KEY, "host-key")?,
        }),
    })
}

fn snp(fields: &mut Fields) -> Result<SnpEvidence, EvidenceError> {
    let crls = match fields.take(CRLS) {
        None => Vec::new(),
        Some(value) => {
            let items = value.into_array().map_err(|_| problem("crls", "not an array"))?;
            let bytes = |item: Value| item.into_bytes().map_err(|_| problem("crls", "not byte strings"));
            items.into_iter().map(bytes).collect::<Result<_, _>>()?
        }
    };
    Ok(SnpEvidence {
        report: fields.bytes(ATTESTATION, "attestation")?,
        vek: fields.optional_bytes(VEK, "vek")?,
        authority: fields.optional_bytes(AUTHORITY, "authority")?,
        ark: fields.optional_bytes(ROOT, "root")?,
        crls,
    })
}

fn tdx(fields: &mut Fields) -> Result<TdxEvidence, EvidenceError> {
    let collateral = match fields.optional_bytes(COLLATERAL, "collateral")? {
        None => None,
        Some(json) => Some(Box::new(
            parse_collateral(&json).map_err(|error| problem("collateral", error.to_string()))?,
        )),
    };
    let quote = fields.bytes(ATTESTATION, "attestation")?;
    Ok(TdxEvidence {
        quote,
        collateral,
        root: fields.optional_bytes(ROOT, "root")?,
    })
}

fn push_snp(map: &mut Vec<(i64, Value)>, snp: &SnpEvidence) {
    map.push((ATTESTATION, snp.report.clone().into()));
    push_optional(map, VEK, snp.vek.as_ref());
    push_optional(map, AUTHORITY, snp.authority.as_ref());
    push_optional(map, ROOT, snp.ark.as_ref());
    if !snp.crls.is_empty() {
        map.push((
            CRLS,
            Value::Array(snp.crls.iter().cloned().map(Value::from).collect()),
        ));
    }
}

fn push_tdx(map: &mut Vec<(i64, Value)>, tdx: &TdxEvidence) {
    map.push((ATTESTATION, tdx.quote.clone().into()));
    push_optional(map, ROOT, tdx.root.as_ref());
    if let Some(Ok(json)) = tdx.collateral.as_ref().map(serde_json::to_vec) {
        map.push((COLLATERAL, json.into()));
    }
}

fn push_optional(map: &mut Vec<(i64, Value)>, key: i64, bytes: Option<&Vec<u8>>) {
    map.extend(bytes.map(|bytes| (key, Value::from(bytes.clone()))));
}

fn events(value: Option<Value>) -> Result<Vec<Event>, EvidenceError> {
    let Some(value) = value else { return Ok(Vec::new()) };
    let items = value
        .into_array()
        .map_err(|_| problem("event-log", "not an array"))?;
    if items.len() > MAX_EVENTS {
        return Err(problem(
            "event-log",
            format!("{} events, more than {MAX_EVENTS}", items.len()),
        ));
    }
    items.into_iter().map(event).collect()
}

fn event(value: Value) -> Result<Event, EvidenceError> {
    let wrong = || problem("event-log", "an event is [register, 48-byte digest, ? data]");
    let mut items = value.into_array().map_err(|_| wrong())?.into_iter();
    let rtmr = items
        .next()
        .and_then(|item| item.as_integer()?.try_into().ok())
        .ok_or_else(wrong)?;
    let digest = items
        .next()
        .and_then(|item| item.into_bytes().ok())
        .ok_or_else(wrong)?;
    let digest = <[u8; 48]>::try_from(digest).map_err(|_| wrong())?;
    let data = items
        .next()
        .map(|item| item.into_bytes().map_err(|_| wrong()))
        .transpose()?;
    if items.next().is_some() {
        return Err(wrong());
    }
    Ok(Event {
        rtmr,
        digest: Bytes48::from(digest),
        data,
    })
}

fn event_value(event: &Event) -> Value {
    let mut items = vec![Value::from(event.rtmr), Value::from(event.digest.0.to_vec())];
    items.extend(event.data.clone().map(Value::from));
    Value::Array(items)
}

fn problem(field: &'static str, problem: impl Into<String>) -> EvidenceError {
    EvidenceError::Field {
        field,
        problem: problem.into(),
    }
}

struct Fields(Vec<(i64, Value)>);

impl Fields {
    fn new(value: Value) -> Result<Self, EvidenceError> {
        let entries = value
            .into_map()
            .map_err(|_| EvidenceError::Cbor("not a map".to_owned()))?;
        let mut fields: Vec<(i64, Value)> = Vec::new();
        for (key, value) in entries {
            let key = key.as_integer().and_then(|key| i64::try_from(key).ok());
            let key = key.ok_or_else(|| problem("key", "not an integer"))?;
            if fields.iter().any(|(known, _)| *known == key) {
                return Err(problem("key", format!("{key} appears twice")));
            }
            fields.push((key, value));
        }
        Ok(Self(fields))
    }

    fn take(&mut self, key: i64) -> Option<Value> {
        let index = self.0.iter().position(|(known, _)| *known == key)?;
        Some(self.0.swap_remove(index).1)
    }

    fn text(&mut self, key: i64, field: &'static str) -> Result<String, EvidenceError> {
        let value = self.take(key).ok_or_else(|| problem(field, "missing"))?;
        value.into_text().map_err(|_| problem(field, "not text"))
    }

    fn bytes(&mut self, key: i64, field: &'static str) -> Result<Vec<u8>, EvidenceError> {
        self.optional_bytes(key, field)?
            .ok_or_else(|| problem(field, "missing"))
    }

    fn optional_bytes(&mut self, key: i64, field: &'static str) -> Result<Option<Vec<u8>>, EvidenceError> {
        let bytes = |value: Value| {
            value
                .into_bytes()
                .map_err(|_| problem(field, "not a byte string"))
        };
        self.take(key).map(bytes).transpose()
    }

    fn finish(self) -> Result<(), EvidenceError> {
        match self.0.first() {
            None => Ok(()),
            Some((key, _)) => Err(problem(
                "key",
                format!("{key} is not one of this kind of evidence"),
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn full() -> Evidence {
        let snp = SnpEvidence {
            report: vec![1; 1184],
            vek: Some(vec![2]),
            authority: Some(vec![3]),
            ark: Some(vec![4]),
            crls: vec![vec![5], vec![6]],
        };
        Evidence {
            attestation: Attestation::SimulatedSnp(snp),
            manifest: Some(b"manifest".to_vec()),
            event_log: vec![
                Event::of_data(3, b"event".to_vec()),
                Event {
                    rtmr: 0,
                    digest: Bytes48::ZERO,
                    data: None,
                },
            ],
            runtime_data: Some(vec![7]),
        }
    }

    #[test]
    fn reads_what_it_writes() {
        let software = SoftwareEvidence {
            statement: vec![1],
            key: vec![2],
        };
        for evidence in [full(), Attestation::Software(software).into()] {
            assert_eq!(Evidence::from_cbor(&evidence.to_cbor()), Ok(evidence));
        }
    }

    #[test]
    fn every_cut_and_every_addition_is_an_error() {
        let bytes = full().to_cbor();
        for length in 0..bytes.len() {
            assert!(Evidence::from_cbor(&bytes[..length]).is_err(), "{length}");
        }
        assert!(Evidence::from_cbor(&[bytes, vec![0]].concat()).is_err());
    }

    #[test]
    fn foreign_and_doubled_keys_are_errors() {
        let write = |extra: (Value, Value)| {
            let value: Value = ciborium::from_reader(full().to_cbor().as_slice()).unwrap();
            let mut map = value.into_map().unwrap();
            map.push(extra);
            let mut bytes = Vec::new();
            ciborium::into_writer(&Value::Map(map), &mut bytes).unwrap();
            Evidence::from_cbor(&bytes)
        };
        for key in [HOST_KEY, VEK, 1] {
            assert!(
                matches!(
                    write((key.into(), vec![0u8].into())),
                    Err(EvidenceError::Field { .. })
                ),
                "{key}"
            );
        }
        assert!(write(("vek".into(), vec![0u8].into())).is_err());
    }

    #[test]
    fn deep_nesting_is_an_error_and_not_a_crash() {
        let mut bytes = vec![0x81; 100_000];
        bytes.push(0);
        assert!(matches!(Evidence::from_cbor(&bytes), Err(EvidenceError::Cbor(_))));
    }
}
