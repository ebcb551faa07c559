//! Secrets encrypted to a guest's key: JWE (RFC 7516) with A256GCM, the content key wrapped by ECDH-ES+A256KW or
//! RSA-OAEP-256 (RFC 7518 §4.3, §4.6).
//!
//! `RSA1_5`, which old clients of Confidential Containers ask for, is refused: its padding can be probed.

use aes_kw::{KeyInit as _, KwAes256};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use p256::NistP256;
use p256::ecdh::diffie_hellman;
use p256::elliptic_curve::sec1::{FromSec1Point, ModulusSize, Sec1Point, ToSec1Point};
use p256::elliptic_curve::{
    AffinePoint, CurveArithmetic, FieldBytesSize, Generate as _, PublicKey, SecretKey,
};
use p384::NistP384;
use p521::NistP521;
use ring::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use rsa::{BigUint, Oaep, RsaPublicKey};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

use crate::protocol::{EcKey, EcType, Response, RsaKey, TeePublicKey};
use crate::random::{NoRandomness, random};

const ECDH: &str = "ECDH-ES+A256KW";
const OAEP: &str = "RSA-OAEP-256";
const A256GCM: &str = "A256GCM";
const TAG_BYTES: usize = 16;
const WRAPPED_BYTES: usize = 40;
/// Bits of RSA keys that are taken.
const RSA_BITS: std::ops::RangeInclusive<usize> = 2048..=4096;

/// Why something cannot be encrypted to a key, or not decrypted with one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum JweError {
    /// An algorithm that is not offered.
    #[error("the key is for {0:?}; this broker wraps with {ECDH} and {OAEP}")]
    Algorithm(String),
    /// A curve that is not offered.
    #[error("curve {0:?} is none of P-256, P-384, P-521")]
    Curve(String),
    /// Not a key.
    #[error("the key is malformed: {0}")]
    Key(&'static str),
    /// Not a JWE that was made for this key.
    #[error("the answer is no JWE for this key: {0}")]
    Answer(&'static str),
    /// No random bytes.
    #[error(transparent)]
    Randomness(#[from] NoRandomness),
}

/// Fields in the order in which Confidential Containers' client writes them again to authenticate them.
#[derive(Serialize, Deserialize)]
struct Header {
    alg: String,
    enc: String,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    epk: Option<Ephemeral>,
}

#[derive(Serialize, Deserialize)]
struct Ephemeral {
    crv: String,
    kty: EcType,
    x: String,
    y: String,
}

/// A guest's key whose form and algorithm are good: something can be encrypted to it.
#[derive(Debug, Clone)]
pub enum Recipient {
    /// On P-256.
    P256(PublicKey<NistP256>),
    /// On P-384.
    P384(PublicKey<NistP384>),
    /// On P-521.
    P521(PublicKey<NistP521>),
    /// RSA.
    Rsa(Box<RsaPublicKey>),
}

impl TryFrom<&TeePublicKey> for Recipient {
    type Error = JweError;

    fn try_from(key: &TeePublicKey) -> Result<Self, JweError> {
        match key {
            TeePublicKey::Ec(key) if key.alg != ECDH => Err(JweError::Algorithm(key.alg.clone())),
            TeePublicKey::Ec(key) => match key.crv.as_str() {
                "P-256" => point::<NistP256>(&key.x, &key.y).map(Recipient::P256),
                "P-384" => point::<NistP384>(&key.x, &key.y).map(Recipient::P384),
                "P-521" => point::<NistP521>(&key.x, &key.y).map(Recipient::P521),
                other => Err(JweError::Curve(other.to_owned())),
            },
            TeePublicKey::Rsa(key) if key.alg != OAEP => Err(JweError::Algorithm(key.alg.clone())),
            TeePublicKey::Rsa(key) => rsa_key(key).map(|key| Recipient::Rsa(Box::new(key))),
        }
    }
}

impl Recipient {
    /// Encrypts `secret` so that only the key's holder reads it.
    ///
    /// # Errors
    /// [`JweError`] without random bytes, or where the RSA key cannot encrypt.
    pub fn encrypt(&self, secret: &[u8]) -> Result<Response, JweError> {
        let content_key = Zeroizing::new(random::<32>()?);
        let (header, encrypted_key) = match self {
            Recipient::P256(key) => agree("P-256", key, &content_key)?,
            Recipient::P384(key) => agree("P-384", key, &content_key)?,
            Recipient::P521(key) => agree("P-521", key, &content_key)?,
            Recipient::Rsa(key) => {
                let padding = Oaep::new::<Sha256>();
                let wrapped = key
                    .encrypt(&mut rand_core::OsRng, padding, &content_key[..])
                    .map_err(|_| JweError::Key("RSA"))?;
                (Header::new(OAEP, None), wrapped)
            }
        };
        // A structure of text always has a JSON form.
        let protected = URL_SAFE_NO_PAD.encode(serde_json::to_vec(&header).unwrap_or_default());
        let iv = random::<12>()?;
        let mut sealed = secret.to_vec();
        let tag = gcm(&content_key)?
            .seal_in_place_separate_tag(
                Nonce::assume_unique_for_key(iv),
                Aad::from(protected.as_bytes()),
                &mut sealed,
            )
            .map_err(|_| JweError::Key("too much to encrypt"))?;
        Ok(Response {
            encrypted_key: URL_SAFE_NO_PAD.encode(encrypted_key),
            iv: URL_SAFE_NO_PAD.encode(iv),
            ciphertext: URL_SAFE_NO_PAD.encode(sealed),
            tag: URL_SAFE_NO_PAD.encode(tag.as_ref()),
            protected,
        })
    }
}

impl Header {
    fn new(alg: &str, epk: Option<Ephemeral>) -> Self {
        Self {
            alg: alg.to_owned(),
            enc: A256GCM.to_owned(),
            epk,
        }
    }
}

fn gcm(key: &[u8; 32]) -> Result<LessSafeKey, JweError> {
    let key = UnboundKey::new(&AES_256_GCM, key).map_err(|_| JweError::Key("content key"))?;
    Ok(LessSafeKey::new(key))
}

fn point<C>(x: &str, y: &str) -> Result<PublicKey<C>, JweError>
where
    C: CurveArithmetic,
    FieldBytesSize<C>: ModulusSize,
    AffinePoint<C>: FromSec1Point<C> + ToSec1Point<C>,
{
    let mut bytes = vec![4];
    for coordinate in [x, y] {
        let coordinate = URL_SAFE_NO_PAD
            .decode(coordinate)
            .map_err(|_| JweError::Key("a coordinate is not base64url"))?;
        bytes.extend(coordinate);
    }
    PublicKey::from_sec1_bytes(&bytes).map_err(|_| JweError::Key("not a point on the curve"))
}

fn coordinates<C>(point: &Sec1Point<C>) -> Option<(String, String)>
where
    C: CurveArithmetic,
    FieldBytesSize<C>: ModulusSize,
{
    Some((
        URL_SAFE_NO_PAD.encode(point.x()?),
        URL_SAFE_NO_PAD.encode(point.y()?),
    ))
}

fn rsa_key(key: &RsaKey) -> Result<RsaPublicKey, JweError> {
    let number = |text: &str| match URL_SAFE_NO_PAD.decode(text) {
        Ok(bytes) if bytes.len() <= *RSA_BITS.end() / 8 => Ok(BigUint::from_bytes_be(&bytes)),
        _ => Err(JweError::Key("a number is not base64url, or too long")),
    };
    let (modulus, exponent) = (number(&key.n)?, number(&key.e)?);
    if !RSA_BITS.contains(&modulus.bits()) {
        return Err(JweError::Key("RSA keys have 2048 to 4096 bits"));
    }
    RsaPublicKey::new(modulus, exponent).map_err(|_| JweError::Key("not an RSA key"))
}

fn agree<C>(
    curve: &str,
    recipient: &PublicKey<C>,
    content_key: &[u8; 32],
) -> Result<(Header, Vec<u8>), JweError>
where
    C: CurveArithmetic,
    FieldBytesSize<C>: ModulusSize,
    AffinePoint<C>: FromSec1Point<C> + ToSec1Point<C>,
{
    let ephemeral = SecretKey::<C>::try_generate().map_err(|_| NoRandomness)?;
    let shared = diffie_hellman(ephemeral.to_nonzero_scalar(), recipient.as_affine());
    let key = derive(shared.raw_secret_bytes());
    let mut wrapped = vec![0; WRAPPED_BYTES];
    KwAes256::new(&(*key).into())
        .wrap_key(content_key, &mut wrapped)
        .map_err(|_| JweError::Key("content key"))?;
    let (x, y) =
        coordinates::<C>(&ephemeral.public_key().to_sec1_point(false)).ok_or(JweError::Key("point"))?;
    let epk = Ephemeral {
        crv: curve.to_owned(),
        kty: EcType::Ec,
        x,
        y,
    };
    Ok((Header::new(ECDH, Some(epk)), wrapped))
}

/// Concat KDF for 256 bits (RFC 7518 §4.6.2; NIST SP 800-56A §5.8.1), which is one round of SHA-256.
fn derive(shared: &[u8]) -> Zeroizing<[u8; 32]> {
    let digest = Sha256::new()
        .chain_update(1u32.to_be_bytes())
        .chain_update(shared)
        .chain_update((ECDH.len() as u32).to_be_bytes())
        .chain_update(ECDH)
        .chain_update(0u32.to_be_bytes())
        .chain_update(0u32.to_be_bytes())
        .chain_update(256u32.to_be_bytes())
        .finalize();
    Zeroizing::new(digest.into())
}

/// A guest's own key, on P-256, made anew for each session.
pub struct TeeKey(SecretKey<NistP256>);

impl TeeKey {
    /// A fresh key.
    ///
    /// # Errors
    /// [`JweError::Randomness`].
    pub fn generate() -> Result<Self, JweError> {
        let key = SecretKey::try_generate().map_err(|_| NoRandomness)?;
        Ok(Self(key))
    }

    /// The public half, for [`crate::protocol::RuntimeData`].
    pub fn public(&self) -> TeePublicKey {
        // A public key is never the point at infinity, the only one without coordinates.
        let (x, y) = coordinates::<NistP256>(&self.0.public_key().to_sec1_point(false)).unwrap_or_default();
        TeePublicKey::Ec(EcKey {
            alg: ECDH.to_owned(),
            crv: "P-256".to_owned(),
            kty: EcType::Ec,
            x,
            y,
        })
    }

    /// Opens an answer.
    ///
    /// # Errors
    /// [`JweError::Answer`] for anything that was not made for this key.
    pub fn decrypt(&self, answer: &Response) -> Result<Zeroizing<Vec<u8>>, JweError> {
        let decode = |text: &str| {
            URL_SAFE_NO_PAD
                .decode(text)
                .map_err(|_| JweError::Answer("not base64url"))
        };
        let header: Header =
            serde_json::from_slice(&decode(&answer.protected)?).map_err(|_| JweError::Answer("header"))?;
        let Some(epk) = header.epk.filter(|_| header.alg == ECDH && header.enc == A256GCM) else {
            return Err(JweError::Answer("another algorithm"));
        };
        let ephemeral = point::<NistP256>(&epk.x, &epk.y)?;
        let shared = diffie_hellman(self.0.to_nonzero_scalar(), ephemeral.as_affine());
        let key = derive(shared.raw_secret_bytes());
        let mut content_key = Zeroizing::new([0; 32]);
        KwAes256::new(&(*key).into())
            .unwrap_key(&decode(&answer.encrypted_key)?, &mut content_key[..])
            .map_err(|_| JweError::Answer("wrapped key"))?;
        let iv = <[u8; 12]>::try_from(decode(&answer.iv)?).map_err(|_| JweError::Answer("iv"))?;
        let mut sealed = Zeroizing::new(decode(&answer.ciphertext)?);
        let tag = decode(&answer.tag)?;
        if tag.len() != TAG_BYTES {
            return Err(JweError::Answer("tag"));
        }
        sealed.extend(tag);
        let plain = gcm(&content_key)?
            .open_in_place(
                Nonce::assume_unique_for_key(iv),
                Aad::from(answer.protected.as_bytes()),
                &mut sealed,
            )
            .map_err(|_| JweError::Answer("it was changed"))?;
        let length = plain.len();
        sealed.truncate(length);
        Ok(sealed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_holder_of_the_key_reads_what_was_encrypted_and_nobody_else() {
        let key = TeeKey::generate().unwrap();
        let answer = Recipient::try_from(&key.public())
            .unwrap()
            .encrypt(b"secret")
            .unwrap();
        assert_eq!(&key.decrypt(&answer).unwrap()[..], b"secret");
        assert!(TeeKey::generate().unwrap().decrypt(&answer).is_err());
        for field in 0..5 {
            let mut changed = answer.clone();
            let text = match field {
                0 => &mut changed.protected,
                1 => &mut changed.encrypted_key,
                2 => &mut changed.iv,
                3 => &mut changed.ciphertext,
                _ => &mut changed.tag,
            };
            let flipped = if text.starts_with('A') { "B" } else { "A" };
            text.replace_range(0..1, flipped);
            assert!(key.decrypt(&changed).is_err(), "field {field}");
        }
    }

    #[test]
    fn rsa_keys_are_served_with_oaep_only() {
        let private = rsa::RsaPrivateKey::new(&mut rand_core::OsRng, 2048).unwrap();
        use rsa::traits::PublicKeyParts as _;
        let mut key = RsaKey {
            alg: OAEP.to_owned(),
            e: URL_SAFE_NO_PAD.encode(private.e().to_bytes_be()),
            kty: crate::protocol::RsaType::Rsa,
            n: URL_SAFE_NO_PAD.encode(private.n().to_bytes_be()),
        };
        let answer = Recipient::try_from(&TeePublicKey::Rsa(key.clone()))
            .unwrap()
            .encrypt(b"x")
            .unwrap();
        let wrapped = URL_SAFE_NO_PAD.decode(answer.encrypted_key).unwrap();
        let content_key = private.decrypt(Oaep::new::<Sha256>(), &wrapped).unwrap();
        assert_eq!(content_key.len(), 32);
        key.alg = "RSA1_5".to_owned();
        assert!(matches!(
            Recipient::try_from(&TeePublicKey::Rsa(key)),
            Err(JweError::Algorithm(_))
        ));
    }

    #[test]
    fn points_off_the_curve_and_other_curves_are_refused() {
        let TeePublicKey::Ec(good) = TeeKey::generate().unwrap().public() else {
            unreachable!("it is on P-256")
        };
        let zero = URL_SAFE_NO_PAD.encode([0; 32]);
        for key in [
            EcKey {
                x: zero,
                ..good.clone()
            },
            EcKey {
                x: String::new(),
                y: String::new(),
                ..good.clone()
            },
            EcKey {
                crv: "secp256k1".to_owned(),
                ..good.clone()
            },
            EcKey {
                crv: "P-384".to_owned(),
                ..good
            },
        ] {
            assert!(Recipient::try_from(&TeePublicKey::Ec(key)).is_err());
        }
    }
}
