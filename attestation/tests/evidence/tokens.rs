//! Tokens: what a relying party reads is what the verifier signed, in every form and in another language.

use std::io::Write as _;
use std::process::{Command, Stdio};

use cloak_attestation::token::{Ear, Status, TokenError};
use cloak_attestation::{Policy, Request, Verifier};
use p256::ecdsa::SigningKey;
use p256::pkcs8::{EncodePublicKey as _, LineEnding};

use crate::vectors::{at, sev_milan, skip, snp_evidence};

fn key() -> SigningKey {
    SigningKey::from_slice(&[5; 32]).unwrap()
}

fn ear(policy: &str, request: Request) -> Ear {
    let verifier = Verifier::new(Policy::from_toml(policy).unwrap());
    match verifier.verify(&snp_evidence(sev_milan()), &request) {
        Ok(verified) => Ear::for_verified(&verified, 300),
        Err(refused) => Ear::for_refused(&refused, request.now, 300),
    }
}

fn pinned() -> Ear {
    let measurement = hex::encode(&sev_milan().report[0x90..0xc0]);
    let reference =
        format!("[[reference]]\nname = \"a\"\nversion = \"1\"\nsnp_measurement = [\"{measurement}\"]");
    ear(&reference, at("2024-01-01"))
}

#[test]
fn both_forms_carry_the_same_result() {
    let now = at("2024-01-01").now;
    let refused = ear("platforms = [\"tdx\"]", at("2024-01-01"));
    for ear in [pinned(), ear("", at("2024-01-01")), refused] {
        assert_eq!(
            Ear::from_jwt(&ear.to_jwt(&key()), key().verifying_key(), now).unwrap(),
            ear
        );
        assert_eq!(
            Ear::from_cwt(&ear.to_cwt(&key()), key().verifying_key(), now).unwrap(),
            ear
        );
    }
}

#[test]
fn only_a_pinned_measurement_is_affirmed() {
    assert_eq!(pinned().status, Status::Affirming);
    assert_eq!(ear("", at("2024-01-01")).status, Status::None);
    let refused = ear("", at("2031-01-01"));
    assert_eq!(
        (refused.status, refused.reasons),
        (Status::Contraindicated, vec!["chain.expired".to_owned()])
    );
}

#[test]
fn expired_early_foreign_and_unsigned_tokens_are_refused() {
    let ear = pinned();
    let jwt = ear.to_jwt(&key());
    let read = |token: &str, now| Ear::from_jwt(token, key().verifying_key(), now);
    let late = ear.expires_at;
    assert_eq!(read(&jwt, late), Err(TokenError::Expired(late)));
    assert_eq!(
        Ear::from_cwt(&ear.to_cwt(&key()), key().verifying_key(), late),
        Err(TokenError::Expired(late))
    );
    let early = ear.issued_at.minus_seconds(1);
    assert_eq!(read(&jwt, early), Err(TokenError::NotYetValid(ear.issued_at)));
    let other = SigningKey::from_slice(&[6; 32]).unwrap();
    assert_eq!(
        Ear::from_jwt(&jwt, other.verifying_key(), ear.issued_at),
        Err(TokenError::Signature)
    );
    let (_, rest) = jwt.split_once('.').unwrap();
    // {"alg":"none"}
    assert_eq!(
        read(&format!("eyJhbGciOiJub25lIn0.{rest}"), ear.issued_at),
        Err(TokenError::Algorithm)
    );
    for index in 0..jwt.len() {
        let mut changed = jwt.clone().into_bytes();
        changed[index] = if changed[index] == b'A' { b'B' } else { b'A' };
        let changed = String::from_utf8(changed).unwrap();
        assert!(read(&changed, ear.issued_at).is_err(), "{index}");
    }
    let cwt = ear.to_cwt(&key());
    for bit in 0..cwt.len() * 8 {
        let mut changed = cwt.clone();
        changed[bit / 8] ^= 1 << (bit % 8);
        assert!(
            Ear::from_cwt(&changed, key().verifying_key(), ear.issued_at).is_err(),
            "{bit}"
        );
    }
}

#[test]
fn pyjwt_reads_it() {
    let python = ["python3", "/usr/bin/python3"].into_iter().find(|python| {
        let probe = Command::new(python)
            .args(["-c", "import jwt, cryptography"])
            .stderr(Stdio::null())
            .status();
        probe.is_ok_and(|status| status.success())
    });
    let Some(python) = python else {
        skip(
            "tokens read by PyJWT",
            "no Python with PyJWT and cryptography (Debian: python3-jwt)",
        );
        return;
    };
    let script = r#"
import jwt, sys, json
token, key = sys.stdin.read().split("\n", 1)
claims = jwt.decode(token, key, algorithms=["ES256"], options={"verify_exp": False, "verify_iat": False})
print(claims["submods"]["cloak"]["ear.status"], claims["eat_profile"])
"#;
    let pem = key().verifying_key().to_public_key_pem(LineEnding::LF).unwrap();
    let mut child = Command::new(python)
        .args(["-c", script])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    write!(child.stdin.take().unwrap(), "{}\n{pem}", pinned().to_jwt(&key())).unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(
        String::from_utf8(output.stdout).unwrap().trim(),
        "affirming tag:github.com,2023:veraison/ear"
    );
}
