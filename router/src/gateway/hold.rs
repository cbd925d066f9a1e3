//! The money of one attempt: held from the tenant's budgets and from what the policy's ceiling on the mean cost allows,
//! before anything is sent; all or nothing. A shadow run is held from the budget of its policy's shadow runs in place of the
//! latter.

use super::Gateway;
use super::reply::GatewayErrorKind;
use super::run::{RETRY_SOON, Run};
use crate::budget::allowance::AllowanceHold;
use crate::budget::{BudgetError, BudgetLimits, Hold};
use crate::domain::{AttemptId, Cost, NanoUsd, TenantId};
use crate::policy::Policy;

/// What is held for an attempt that may cost something.
#[must_use = "dropped holds are booked in full"]
pub struct Held {
    /// Of the tenant's budget and, of a shadow run, of that of the policy's shadow runs.
    budgets: Vec<Hold>,
    allowance: Option<AllowanceHold>,
}

impl Held {
    /// Books the truth; yields whether it came out above the hold.
    pub fn settle(self, cost: Cost) -> bool {
        if let Some(allowance) = self.allowance {
            allowance.settle(cost);
        }
        self.budgets.into_iter().fold(false, |over, hold| over | hold.settle(cost).overrun)
    }

    /// Gives everything back: the attempt never started.
    pub fn refund(self) {
        self.settle(Cost::FREE);
    }
}

impl Gateway {
    /// What a policy's ceiling leaves for a request that comes now; `None` without a ceiling.
    pub(super) fn allowance(&self, policy: &Policy) -> Option<NanoUsd> {
        Some(self.allowances.left(&policy.reference.name, &policy.allowed()?))
    }

    /// Counts a request that is being served, for its policy's ceiling.
    pub(super) fn earn(&self, policy: &Policy) {
        if let Some(allowed) = policy.allowed() {
            self.allowances.earn(&policy.reference.name, &allowed);
        }
    }
}

/// Holds `bound` for an attempt of a run; nothing for a free one.
///
/// # Errors
/// A budget or the ceiling has no room.
pub(super) fn hold(run: &Run, id: AttemptId, bound: NanoUsd) -> Result<Option<Held>, GatewayErrorKind> {
    if bound == NanoUsd::ZERO {
        return Ok(None);
    }
    let (gateway, policy) = (&run.gateway, &run.admitted.policy);
    let tenant = &run.admitted.request.tenant;
    let limits = gateway.budget_limits(tenant, policy);
    let budget =
        gateway.budgets.hold(tenant, id, bound, &limits).map_err(|error| exhausted(tenant.as_str(), &error))?;
    if let Some(shadow) = &run.shadow {
        // Shadow runs have a budget of their own; the ceiling is about what serves.
        let purse = TenantId::new(shadow.policy.as_str());
        let daily = policy.shadow.as_ref().map_or(NanoUsd::ZERO, |shadow| shadow.daily);
        let limits = BudgetLimits { daily: Some(daily), monthly: None };
        return match gateway.shadow_budgets.hold(&purse, id, bound, &limits) {
            Ok(second) => Ok(Some(Held { budgets: vec![budget, second], allowance: None })),
            Err(error) => {
                budget.refund();
                Err(exhausted(&format!("shadow runs of {}", shadow.policy), &error))
            }
        };
    }
    let Some(allowed) = policy.allowed() else { return Ok(Some(Held { budgets: vec![budget], allowance: None })) };
    match gateway.allowances.hold(&policy.reference.name, &allowed, bound) {
        Ok(allowance) => Ok(Some(Held { budgets: vec![budget], allowance: Some(allowance) })),
        Err(error) => {
            budget.refund();
            let why = format!("policy `{}`: {error}", policy.reference.name);
            Err(GatewayErrorKind::CostCeiling { why, retry_after: RETRY_SOON })
        }
    }
}

fn exhausted(tenant: &str, error: &BudgetError) -> GatewayErrorKind {
    match error {
        BudgetError::Exhausted { window, limit, spent, held, asked, resets_in } => GatewayErrorKind::BudgetExhausted {
            tenant: tenant.to_owned(),
            window: *window,
            limit: *limit,
            spent: *spent,
            held: *held,
            asked: *asked,
            resets_in: *resets_in,
        },
    }
}
