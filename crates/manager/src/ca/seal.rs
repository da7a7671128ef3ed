//! The cluster key, and what is sealed with it: AES-256-GCM with a random nonce in front.

use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use aws_lc_rs::aead::{AES_256_GCM, Aad, NONCE_LEN, Nonce, RandomizedNonceKey};
use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use shoal_model::Sealed;

use super::CaError;

const KEY_BYTES: usize = 32;

/// Opens what the store holds sealed. Kept in a file of its own that only managers have.
pub(crate) struct ClusterKey(RandomizedNonceKey);

impl ClusterKey {
    /// A new key in a new file, in place of one that is there.
    pub(crate) fn create(path: &Path) -> Result<Self, CaError> {
        let failed = |source| CaError::Key { path: path.to_owned(), source };
        let mut bytes = [0; KEY_BYTES];
        aws_lc_rs::rand::fill(&mut bytes).map_err(|_| CaError::Seal)?;
        match std::fs::remove_file(path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(failed(error)),
            _ => {}
        }
        let mut file = std::fs::OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(path)
            .map_err(failed)?;
        file.write_all(BASE64.encode(bytes).as_bytes()).and_then(|()| file.sync_all()).map_err(failed)?;
        Self::new(&bytes)
    }

    pub(crate) fn load(path: &Path) -> Result<Self, CaError> {
        let text =
            std::fs::read_to_string(path).map_err(|source| CaError::Key { path: path.to_owned(), source })?;
        let bytes = BASE64.decode(text.trim()).map_err(|_| CaError::DamagedKey(path.to_owned()))?;
        Self::new(&bytes).map_err(|_| CaError::DamagedKey(path.to_owned()))
    }

    fn new(bytes: &[u8]) -> Result<Self, CaError> {
        RandomizedNonceKey::new(&AES_256_GCM, bytes).map(Self).map_err(|_| CaError::Seal)
    }

    /// Seals something so that it opens for the same purpose only.
    pub(crate) fn seal(&self, purpose: &str, plain: &[u8]) -> Result<Sealed, CaError> {
        let mut sealed = plain.to_vec();
        let nonce = self
            .0
            .seal_in_place_append_tag(Aad::from(purpose.as_bytes()), &mut sealed)
            .map_err(|_| CaError::Seal)?;
        Ok(Sealed(BASE64.encode([nonce.as_ref().as_slice(), &sealed].concat())))
    }

    pub(crate) fn open(&self, purpose: &str, sealed: &Sealed) -> Result<Vec<u8>, CaError> {
        let failed = || CaError::Unsealed(purpose.to_owned());
        let bytes = BASE64.decode(&sealed.0).map_err(|_| failed())?;
        let (nonce, rest) = bytes.split_at_checked(NONCE_LEN).ok_or_else(failed)?;
        let nonce = Nonce::try_assume_unique_for_key(nonce).map_err(|_| failed())?;
        let mut rest = rest.to_vec();
        let plain = self.0.open_in_place(nonce, Aad::from(purpose.as_bytes()), &mut rest);
        plain.map(|plain| plain.to_vec()).map_err(|_| failed())
    }
}
