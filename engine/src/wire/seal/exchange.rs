//! X25519 (RFC 7748), by AWS-LC or in pure Rust: a secret that two ends come to share and nobody who only listens.
//!
//! Owns the choice between the two; a build has one of them, tests have both. Does not own what is proved about the public
//! keys: without a proof they may be anybody's.
//!
//! ```
//! use haul_engine::wire::seal::{Exchange, Secret};
//!
//! let [client, server] = [[7; 32], [9; 32]].map(|random| Exchange::new(&Secret::from_bytes(random)));
//! let (to_server, to_client) = (client.public(), server.public());
//! assert_eq!(client.agree(&to_client).unwrap().expose(), server.agree(&to_server).unwrap().expose());
//! ```

use super::Secret;
use super::aead::Backend;

/// One end's half, for one connection. Wiped when dropped.
pub struct Exchange(Half);

enum Half {
    #[cfg(any(test, feature = "aws-lc"))]
    AwsLc(aws_lc::Half),
    #[cfg(any(test, not(feature = "aws-lc")))]
    PureRust(pure_rust::Half),
}

impl Exchange {
    /// `random` is used for nothing else.
    pub fn new(random: &Secret) -> Exchange {
        Exchange::by(Backend::DEFAULT, random)
    }

    pub(super) fn by(backend: Backend, random: &Secret) -> Exchange {
        Exchange(match backend {
            #[cfg(any(test, feature = "aws-lc"))]
            Backend::AwsLc => Half::AwsLc(aws_lc::Half::new(random)),
            #[cfg(any(test, not(feature = "aws-lc")))]
            Backend::PureRust => Half::PureRust(pure_rust::Half::new(random)),
        })
    }

    /// What the peer must be told.
    pub fn public(&self) -> [u8; 32] {
        match &self.0 {
            #[cfg(any(test, feature = "aws-lc"))]
            Half::AwsLc(half) => half.public(),
            #[cfg(any(test, not(feature = "aws-lc")))]
            Half::PureRust(half) => half.public(),
        }
    }

    /// The secret shared with the end that has told `peer`. `None` where that would be zero, whatever our half is: the
    /// peer does not want a secret.
    pub fn agree(self, peer: &[u8; 32]) -> Option<Secret> {
        match self.0 {
            #[cfg(any(test, feature = "aws-lc"))]
            Half::AwsLc(half) => half.agree(peer),
            #[cfg(any(test, not(feature = "aws-lc")))]
            Half::PureRust(half) => half.agree(peer),
        }
    }
}

#[cfg(any(test, feature = "aws-lc"))]
mod aws_lc {
    use super::Secret;
    use aws_lc_rs::agreement::{PrivateKey, UnparsedPublicKey, X25519, agree};

    /// AWS-LC wipes what it frees.
    pub(super) struct Half(PrivateKey);

    impl Half {
        pub(super) fn new(random: &Secret) -> Half {
            let key = PrivateKey::from_private_key(&X25519, random.expose());
            Half(key.unwrap_or_else(|_| unreachable!("any 32 bytes are a private key")))
        }

        pub(super) fn public(&self) -> [u8; 32] {
            let key = self.0.compute_public_key();
            let key = key.unwrap_or_else(|_| unreachable!("every private key has a public one"));
            key.as_ref().try_into().unwrap_or_else(|_| unreachable!("a public key has 32 bytes"))
        }

        /// AWS-LC refuses to agree on zero.
        pub(super) fn agree(self, peer: &[u8; 32]) -> Option<Secret> {
            agree(&self.0, UnparsedPublicKey::new(&X25519, peer), (), |shared| {
                Ok(Secret::filled(|place| place.copy_from_slice(shared)))
            })
            .ok()
        }
    }
}

#[cfg(any(test, not(feature = "aws-lc")))]
mod pure_rust {
    use super::Secret;
    use x25519_dalek::{PublicKey, StaticSecret};

    /// "Static" since its bytes are ours; the boxed key is wiped when dropped.
    pub(super) struct Half(Box<StaticSecret>);

    impl Half {
        pub(super) fn new(random: &Secret) -> Half {
            Half(Box::new(StaticSecret::from(*random.expose())))
        }

        pub(super) fn public(&self) -> [u8; 32] {
            PublicKey::from(&*self.0).to_bytes()
        }

        pub(super) fn agree(self, peer: &[u8; 32]) -> Option<Secret> {
            let shared = self.0.diffie_hellman(&PublicKey::from(*peer));
            shared.was_contributory().then(|| Secret::filled(|place| place.copy_from_slice(shared.as_bytes())))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const BACKENDS: [Backend; 2] = [Backend::AwsLc, Backend::PureRust];

    fn unhex(text: &str) -> [u8; 32] {
        std::array::from_fn(|index| u8::from_str_radix(&text[2 * index..2 * index + 2], 16).unwrap())
    }

    fn half(backend: Backend, private: &[u8; 32]) -> Exchange {
        Exchange::by(backend, &Secret::filled(|place| place.copy_from_slice(private)))
    }

    fn agreed(backend: Backend, private: &[u8; 32], peer: &[u8; 32]) -> Option<[u8; 32]> {
        half(backend, private).agree(peer).map(|shared| *shared.expose())
    }

    /// RFC 7748, section 5.2.
    #[test]
    fn the_scalar_products_of_the_rfc_come_out() {
        let vectors = [
            (
                "a546e36bf0527c9d3b16154b82465edd62144c0ac1fc5a18506a2244ba449ac4",
                "e6db6867583030db3594c1a424b15f7c726624ec26b3353b10a903a6d0ab1c4c",
                "c3da55379de9c6908e94ea4df28d084f32eccf03491c71f754b4075577a28552",
            ),
            (
                "4b66e9d4d1b4673c5ad22691957d6af5c11b6421e0ea01d42ca4169e7918ba0d",
                "e5210f12786811d3f4b7959d0538ae2c31dbe7106fc03c3efc4cd549c715a493",
                "95cbde9476e8907d7aade45cb4b873f88b595a68799fa152e6f8f7647aac7957",
            ),
        ];
        for (backend, (private, peer, shared)) in BACKENDS.into_iter().flat_map(|b| vectors.map(|v| (b, v))) {
            assert_eq!(agreed(backend, &unhex(private), &unhex(peer)), Some(unhex(shared)), "{backend:?}");
        }
    }

    /// RFC 7748, section 6.1.
    #[test]
    fn the_exchange_of_the_rfc_comes_out() {
        let ends = [
            (
                "77076d0a7318a57d3c16c17251b26645df4c2f87ebc0992ab177fba51db92c2a",
                "8520f0098930a754748b7ddcb43ef75a0dbf3a0d26381af4eba4a98eaa9b4e6a",
            ),
            (
                "5dab087e624a8a4b79e17f8b83800ee66f3bb1292618b6fd1c2f8b27ff88e0eb",
                "de9edb7d7b7dc1b4d35b61c2ece435373f8343c85b78674dadfc7e146f882b4f",
            ),
        ];
        let shared = unhex("4a5d9d5ba4ce2de1728e3bf480350f25e07e21c947d19e3376f09b3c1e161742");
        for backend in BACKENDS {
            for ((private, public), (_, peer)) in [(ends[0], ends[1]), (ends[1], ends[0])] {
                assert_eq!(half(backend, &unhex(private)).public(), unhex(public));
                assert_eq!(agreed(backend, &unhex(private), &unhex(peer)), Some(shared), "{backend:?}");
            }
        }
    }

    /// The points of small order (curve25519's page of D. J. Bernstein), also with the bit that is ignored.
    #[test]
    fn a_peer_that_wants_no_secret_is_refused() {
        let small = [
            "0000000000000000000000000000000000000000000000000000000000000000",
            "0100000000000000000000000000000000000000000000000000000000000000",
            "e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800",
            "5f9c95bca3508c24b1d0b1559c83ef5b04445cc4581c8e86d8224eddd09f1157",
            "ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
            "edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
            "eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
        ];
        for (backend, point) in BACKENDS.into_iter().flat_map(|backend| small.map(|point| (backend, point))) {
            let mut peer = unhex(point);
            for _ in 0..2 {
                assert_eq!(agreed(backend, &[7; 32], &peer), None, "{backend:?} {point}");
                peer[31] ^= 0x80;
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn both_programs_agree_with_each_other(ours: [u8; 32], theirs: [u8; 32], anything: [u8; 32]) {
            let [aws_lc, pure_rust] = BACKENDS;
            // No closure takes a key by value here: rustc 1.95 passes the caller's own bytes, which `Secret` wipes
            // (rust-lang/rust#155241).
            prop_assert_eq!(half(aws_lc, &ours).public(), half(pure_rust, &ours).public());
            let shared = agreed(aws_lc, &ours, &half(aws_lc, &theirs).public());
            prop_assert!(shared.is_some());
            prop_assert_eq!(shared, agreed(pure_rust, &theirs, &half(pure_rust, &ours).public()));
            prop_assert_eq!(agreed(aws_lc, &ours, &anything), agreed(pure_rust, &ours, &anything));
        }
    }
}
