//! AdamW (Loshchilov & Hutter 2019) over named variables: matrices decay, norms don't; one clipped step a call.

use super::TrainError;
use super::network::Network;
use candle_core::backprop::GradStore;
use candle_core::{Result, Tensor};
use std::collections::BTreeMap;

const BETA1: f64 = 0.9;
const BETA2: f64 = 0.98;
const EPSILON: f64 = 1e-8;

/// Running moments of every variable's gradient, by the variable's name.
#[derive(Default)]
pub(super) struct AdamW {
    /// Means of gradients.
    pub first: BTreeMap<String, Tensor>,
    /// Means of squared gradients.
    pub second: BTreeMap<String, Tensor>,
}

/// What one step needs to know beside the gradients.
#[derive(Clone, Copy, Debug)]
pub(super) struct StepSize {
    /// Learning rate.
    pub rate: f64,
    /// Weight decay of matrices.
    pub decay: f64,
    /// Largest norm of all gradients together.
    pub clip: f64,
    /// Number of this step, from 1.
    pub step: usize,
}

impl AdamW {
    /// Moves every variable. A variable without gradient is an error: an operation without backward pass is in the way.
    pub fn step(
        &mut self,
        network: &Network,
        gradients: &GradStore,
        size: StepSize,
    ) -> std::result::Result<(), TrainError> {
        let scale = (size.clip / norm(network, gradients)?.max(1e-12)).min(1.0);
        let exponent = i32::try_from(size.step).unwrap_or(i32::MAX);
        let (correction1, correction2) = (1.0 - BETA1.powi(exponent), 1.0 - BETA2.powi(exponent));
        for (name, variable) in &network.variables {
            let gradient = (gradients.get(variable).ok_or_else(|| TrainError::NoGradient(name.clone()))? * scale)?;
            let first = blend(self.first.get(name), &gradient, BETA1)?;
            let second = blend(self.second.get(name), &gradient.sqr()?, BETA2)?;
            let update = ((&first / correction1)? / ((&second / correction2)?.sqrt()? + EPSILON)?)?;
            let keep = if variable.dims().len() > 1 { 1.0 - size.rate * size.decay } else { 1.0 };
            variable.set(&((variable.as_tensor() * keep)? - (update * size.rate)?)?)?;
            // Detached, or every step would hang on to the graph of the one before.
            self.first.insert(name.clone(), first.detach());
            self.second.insert(name.clone(), second.detach());
        }
        Ok(())
    }
}

fn norm(network: &Network, gradients: &GradStore) -> Result<f64> {
    let mut square = 0.0;
    for gradient in network.variables.values().filter_map(|variable| gradients.get(variable)) {
        square += f64::from(gradient.sqr()?.sum_all()?.to_scalar::<f32>()?);
    }
    Ok(square.sqrt())
}

fn blend(mean: Option<&Tensor>, value: &Tensor, share: f64) -> Result<Tensor> {
    let value = (value * (1.0 - share))?;
    match mean {
        Some(mean) => (mean * share)? + value,
        None => Ok(value),
    }
}
