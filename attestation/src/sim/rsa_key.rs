//! RSA keys of AMD's length, made in about a second.
//!
//! The `rsa` package would take many times that; `crypto-primes` finds the primes.

use crypto_bigint::{U1024, U2048};
use crypto_primes::{Flavor, random_prime};
use rsa::pss::{SigningKey, VerifyingKey};
use rsa::signature::{RandomizedSigner, SignatureEncoding};
use rsa::{BigUint, RsaPrivateKey};
use sha2::Sha384;
use x509_cert::der::Decode;
use x509_cert::spki::SubjectPublicKeyInfoOwned;

/// No key came out.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("making an RSA key: {0}")]
pub struct RsaKeyError(String);

/// A key that signs with RSASSA-PSS and SHA-384.
#[derive(Debug, Clone)]
pub struct RsaKey(SigningKey<Sha384>);

impl RsaKey {
    /// A key of 4096 bits, as AMD's.
    ///
    /// # Errors
    /// [`RsaKeyError`] if the two primes do not make a key, which happens only if they are equal.
    pub fn generate() -> Result<Self, RsaKeyError> {
        let mut random = getrandom::rand_core::UnwrapErr(getrandom::SysRng);
        let (p, q) = std::thread::scope(|scope| {
            let p = scope.spawn(|| {
                let mut random = getrandom::rand_core::UnwrapErr(getrandom::SysRng);
                random_prime::<U2048, _>(&mut random, Flavor::Any, 2048)
            });
            let q = random_prime::<U2048, _>(&mut random, Flavor::Any, 2048);
            (p.join(), q)
        });
        let p = p.map_err(|_| RsaKeyError("the search for a prime stopped".to_owned()))?;
        Self::from_primes(&p.to_be_bytes(), &q.to_be_bytes())
    }

    /// A key of 2048 bits, which is too short.
    ///
    /// # Errors
    /// As [`RsaKey::generate`].
    pub fn generate_weak() -> Result<Self, RsaKeyError> {
        let mut random = getrandom::rand_core::UnwrapErr(getrandom::SysRng);
        let mut prime = || random_prime::<U1024, _>(&mut random, Flavor::Any, 1024).to_be_bytes();
        Self::from_primes(&prime(), &prime())
    }

    fn from_primes(p: &impl AsRef<[u8]>, q: &impl AsRef<[u8]>) -> Result<Self, RsaKeyError> {
        let primes = [p.as_ref(), q.as_ref()].map(BigUint::from_bytes_be);
        let key = RsaPrivateKey::from_p_q(primes[0].clone(), primes[1].clone(), BigUint::from(65537u32));
        Ok(Self(SigningKey::new(
            key.map_err(|error| RsaKeyError(error.to_string()))?,
        )))
    }

    /// The key for certificates.
    pub(super) fn public_key(&self) -> Result<SubjectPublicKeyInfoOwned, String> {
        use rsa::pkcs8::EncodePublicKey as _;
        use rsa::signature::Keypair as _;
        let key: VerifyingKey<Sha384> = self.0.verifying_key();
        let plain = rsa::RsaPublicKey::from(key);
        let der = plain.to_public_key_der().map_err(|error| error.to_string())?;
        SubjectPublicKeyInfoOwned::from_der(der.as_bytes()).map_err(|error| error.to_string())
    }

    pub(super) fn sign(&self, message: &[u8]) -> Vec<u8> {
        self.0.sign_with_rng(&mut rand_core::OsRng, message).to_vec()
    }
}
