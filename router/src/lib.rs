//! Sluice router.
