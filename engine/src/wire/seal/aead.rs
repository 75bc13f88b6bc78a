//! AES-256-GCM, by AWS-LC or in pure Rust.
//!
//! Owns the choice between the two; a build has one of them, tests have both. On one core, with records of 64 and of
//! 512 KiB, AWS-LC was measured at 11 GB/s and the other at 3.2 (2026-11-26, on a busy machine).

use super::{Forged, TAG_BYTES};

#[cfg(not(any(feature = "aws-lc", feature = "pure-rust")))]
compile_error!("haul-engine needs one of its features `aws-lc` (default) and `pure-rust` to seal records");

/// Who does the work.
#[derive(Clone, Copy, Debug)]
pub(super) enum Backend {
    #[cfg(any(test, feature = "aws-lc"))]
    AwsLc,
    #[cfg(any(test, not(feature = "aws-lc")))]
    PureRust,
}

impl Backend {
    #[cfg(feature = "aws-lc")]
    pub(super) const DEFAULT: Backend = Backend::AwsLc;
    #[cfg(not(feature = "aws-lc"))]
    pub(super) const DEFAULT: Backend = Backend::PureRust;
}

/// A key, expanded. Both wipe it when dropped.
pub(super) enum Cipher {
    #[cfg(any(test, feature = "aws-lc"))]
    AwsLc(aws_lc::Cipher),
    #[cfg(any(test, not(feature = "aws-lc")))]
    PureRust(pure_rust::Cipher),
}

impl Cipher {
    pub(super) fn new(backend: Backend, key: &[u8; 32]) -> Cipher {
        match backend {
            #[cfg(any(test, feature = "aws-lc"))]
            Backend::AwsLc => Cipher::AwsLc(aws_lc::Cipher::new(key)),
            #[cfg(any(test, not(feature = "aws-lc")))]
            Backend::PureRust => Cipher::PureRust(pure_rust::Cipher::new(key)),
        }
    }

    /// Encrypts in place, at most 16 MiB, and returns the tag.
    pub(super) fn seal(&self, nonce: [u8; 12], additional: &[u8], plain: &mut [u8]) -> [u8; TAG_BYTES] {
        match self {
            #[cfg(any(test, feature = "aws-lc"))]
            Cipher::AwsLc(cipher) => cipher.seal(nonce, additional, plain),
            #[cfg(any(test, not(feature = "aws-lc")))]
            Cipher::PureRust(cipher) => cipher.seal(nonce, additional, plain),
        }
    }

    /// Checks and decrypts in place: ciphertext and tag.
    pub(super) fn open(&self, nonce: [u8; 12], additional: &[u8], sealed: &mut [u8]) -> Result<(), Forged> {
        match self {
            #[cfg(any(test, feature = "aws-lc"))]
            Cipher::AwsLc(cipher) => cipher.open(nonce, additional, sealed),
            #[cfg(any(test, not(feature = "aws-lc")))]
            Cipher::PureRust(cipher) => cipher.open(nonce, additional, sealed),
        }
    }
}

#[cfg(any(test, feature = "aws-lc"))]
mod aws_lc {
    use super::{Forged, TAG_BYTES};
    use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};

    /// "Less safe" since nonces are the caller's business.
    pub(in super::super) struct Cipher(LessSafeKey);

    impl Cipher {
        pub(super) fn new(key: &[u8; 32]) -> Cipher {
            let key = UnboundKey::new(&AES_256_GCM, key).unwrap_or_else(|_| unreachable!("the key has 32 bytes"));
            Cipher(LessSafeKey::new(key))
        }

        pub(super) fn seal(&self, nonce: [u8; 12], additional: &[u8], plain: &mut [u8]) -> [u8; TAG_BYTES] {
            let nonce = Nonce::assume_unique_for_key(nonce);
            let tag = self.0.seal_in_place_separate_tag(nonce, Aad::from(additional), plain);
            let tag = tag.unwrap_or_else(|_| unreachable!("a record is shorter than the 64 GiB that GCM allows"));
            tag.as_ref().try_into().unwrap_or_else(|_| unreachable!("a tag of AES-GCM has 16 bytes"))
        }

        pub(super) fn open(&self, nonce: [u8; 12], additional: &[u8], sealed: &mut [u8]) -> Result<(), Forged> {
            let nonce = Nonce::assume_unique_for_key(nonce);
            self.0.open_in_place(nonce, Aad::from(additional), sealed).map_err(|_| Forged)?;
            Ok(())
        }
    }
}

#[cfg(any(test, not(feature = "aws-lc")))]
mod pure_rust {
    use super::{Forged, TAG_BYTES};
    use aes_gcm::{AeadInOut as _, Aes256Gcm, KeyInit as _};

    pub(in super::super) struct Cipher(Box<Aes256Gcm>);

    impl Cipher {
        pub(super) fn new(key: &[u8; 32]) -> Cipher {
            Cipher(Box::new(Aes256Gcm::new(key.into())))
        }

        pub(super) fn seal(&self, nonce: [u8; 12], additional: &[u8], plain: &mut [u8]) -> [u8; TAG_BYTES] {
            let tag = self.0.encrypt_inout_detached(&nonce.into(), additional, plain.into());
            tag.unwrap_or_else(|_| unreachable!("a record is shorter than the 64 GiB that GCM allows")).into()
        }

        pub(super) fn open(&self, nonce: [u8; 12], additional: &[u8], sealed: &mut [u8]) -> Result<(), Forged> {
            let (cipher, tag) = sealed.split_last_chunk_mut::<TAG_BYTES>().ok_or(Forged)?;
            let tag = (*tag).into();
            self.0.decrypt_inout_detached(&nonce.into(), additional, cipher.into(), &tag).map_err(|_| Forged)
        }
    }
}
