//! Memory of the budget for what is no model of its own: encoders. Idle models make room for it, nothing pushes it out.

use super::{Models, ModelsError};
use crate::domain::ModelId;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use tokio::sync::watch;

/// Bytes that count in the budget until this is dropped.
#[derive(Debug)]
pub struct Reserved {
    bytes: u64,
    memory: watch::Sender<u64>,
    reserved: Arc<AtomicU64>,
}

impl Models {
    /// Counts `bytes` of something called `id` in the budget; idle models are pushed out where that helps.
    ///
    /// # Errors
    /// [`ModelsError::TooLarge`], [`ModelsError::NoRoom`].
    pub async fn reserve(&self, id: &ModelId, bytes: u64) -> Result<Reserved, ModelsError> {
        // Loads take turns; see there.
        let _turn = self.turn.lock().await;
        let share = self.share(id, bytes, 0).await?;
        self.reserved.fetch_add(bytes, Ordering::Relaxed);
        share.keep();
        Ok(Reserved { bytes, memory: self.memory.clone(), reserved: Arc::clone(&self.reserved) })
    }
}

impl Drop for Reserved {
    fn drop(&mut self) {
        self.reserved.fetch_sub(self.bytes, Ordering::Relaxed);
        self.memory.send_modify(|used| *used = used.saturating_sub(self.bytes));
    }
}
