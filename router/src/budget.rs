//! Money that may be spent: per tenant, per day and month (UTC). The worst case of an attempt is held before it starts and
//! settled after it; spent + held never passes the limit at the time of a hold, however many requests race.
//!
//! One lock guards all windows and is never held across an await: a hold is a few map look-ups.

pub mod allowance;

use crate::domain::{AttemptId, Cost, CostBasis, NanoUsd, TenantId};
use jiff::Timestamp;
use jiff::civil::{Date, Time};
use jiff::tz::TimeZone;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// A budget's window, in UTC.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum BudgetWindow {
    /// From midnight to midnight.
    Day,
    /// A calendar month.
    Month,
}

impl BudgetWindow {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Day, Self::Month];

    /// The word used on the wire and in messages.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Day => "day",
            Self::Month => "month",
        }
    }

    /// The first instant of the window that `at` falls in, and of the next one.
    pub fn span(self, at: Timestamp) -> (Timestamp, Timestamp) {
        let day = TimeZone::UTC.to_datetime(at).date();
        let first = match self {
            Self::Day => day,
            Self::Month => day.first_of_month(),
        };
        let next = match self {
            Self::Day => first.tomorrow().unwrap_or(first),
            Self::Month => first.last_of_month().tomorrow().unwrap_or(first),
        };
        let instant = |date: Date| TimeZone::UTC.to_timestamp(date.to_datetime(Time::midnight())).unwrap_or(at);
        (instant(first), instant(next))
    }
}

/// Limits of a tenant; `None` is no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BudgetLimits {
    /// Per day.
    pub daily: Option<NanoUsd>,
    /// Per month.
    pub monthly: Option<NanoUsd>,
}

impl BudgetLimits {
    /// The tighter of two limits, window by window.
    pub fn tightest(self, other: Self) -> Self {
        let tighter = |a: Option<NanoUsd>, b: Option<NanoUsd>| match (a, b) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        };
        Self { daily: tighter(self.daily, other.daily), monthly: tighter(self.monthly, other.monthly) }
    }

    /// The limit of a window.
    pub fn of(&self, window: BudgetWindow) -> Option<NanoUsd> {
        match window {
            BudgetWindow::Day => self.daily,
            BudgetWindow::Month => self.monthly,
        }
    }
}

/// Why no money was held.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BudgetError {
    /// The limit has no room for the worst case.
    #[error("the {} budget has no room: limit {limit}, spent {spent}, held {held}, asked {asked}", window.as_str())]
    Exhausted {
        /// Which window.
        window: BudgetWindow,
        /// Its limit.
        limit: NanoUsd,
        /// Spent so far.
        spent: NanoUsd,
        /// Held by attempts in flight.
        held: NanoUsd,
        /// What was asked.
        asked: NanoUsd,
        /// Until the window ends.
        resets_in: Duration,
    },
}

/// A window of a tenant as it stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WindowStatus {
    /// Which.
    pub window: BudgetWindow,
    /// Spent so far.
    pub spent: NanoUsd,
    /// Held by attempts in flight.
    pub held: NanoUsd,
    /// When it ends.
    pub resets_at: Timestamp,
}

/// Sums in nano-USD, wider than [`NanoUsd`]: a sum that saturates could not be taken apart again when a hold ends.
#[derive(Clone, Copy, Debug, Default)]
struct Account {
    spent: i128,
    held: i128,
}

/// A wide sum as an amount; what does not fit is the largest amount.
fn amount(nanos: i128) -> NanoUsd {
    NanoUsd::new(i64::try_from(nanos).unwrap_or(i64::MAX))
}

type Key = (TenantId, BudgetWindow, Timestamp);

#[derive(Default)]
struct Accounts {
    of: HashMap<Key, Account>,
    /// The day on which windows long over were last dropped.
    swept: Option<Timestamp>,
}

/// All budgets of this process.
pub struct Budgets {
    accounts: Mutex<Accounts>,
    clock: fn() -> Timestamp,
}

impl Default for Budgets {
    fn default() -> Self {
        Self { accounts: Mutex::default(), clock: Timestamp::now }
    }
}

impl Budgets {
    /// Empty budgets on another clock, for tests.
    pub fn with_clock(clock: fn() -> Timestamp) -> Self {
        Self { clock, ..Self::default() }
    }

    fn lock(&self) -> MutexGuard<'_, Accounts> {
        self.accounts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn keys(&self, tenant: &TenantId) -> [(BudgetWindow, Key, Timestamp); 2] {
        let now = (self.clock)();
        BudgetWindow::ALL.map(|window| {
            let (first, next) = window.span(now);
            (window, (tenant.clone(), window, first), next)
        })
    }

    /// Adds what the ledger says was spent at `at` before this process started.
    pub fn add_spent(&self, tenant: &TenantId, at: Timestamp, amount: NanoUsd) {
        let mut accounts = self.lock();
        for window in BudgetWindow::ALL {
            accounts.of.entry((tenant.clone(), window, window.span(at).0)).or_default().spent +=
                i128::from(amount.nanos());
        }
    }

    /// Holds `asked` for an attempt in the current windows; less than nothing counts as nothing.
    ///
    /// # Errors
    /// A window has no room for it; nothing is held then.
    pub fn hold(
        self: &Arc<Self>,
        tenant: &TenantId,
        attempt: AttemptId,
        asked: NanoUsd,
        limits: &BudgetLimits,
    ) -> Result<Hold, BudgetError> {
        let asked = asked.max(NanoUsd::ZERO);
        let nanos = i128::from(asked.nanos());
        let keys = self.keys(tenant);
        let mut accounts = self.lock();
        for (window, key, next) in &keys {
            let Some(limit) = limits.of(*window) else { continue };
            let Account { spent, held } = accounts.of.get(key).copied().unwrap_or_default();
            if spent + held + nanos > i128::from(limit.nanos()) {
                let resets_in = Duration::try_from(next.duration_since((self.clock)())).unwrap_or_default();
                let (spent, held) = (amount(spent), amount(held));
                return Err(BudgetError::Exhausted { window: *window, limit, spent, held, asked, resets_in });
            }
        }
        for (_, key, _) in &keys {
            accounts.of.entry(key.clone()).or_default().held += nanos;
        }
        drop(accounts);
        let keys = keys.map(|(_, key, _)| key);
        Ok(Hold { budgets: Arc::clone(self), keys, attempt, amount: asked, settled: false })
    }

    /// Tenants that have spent or held anything.
    pub fn tenants(&self) -> Vec<TenantId> {
        let mut tenants: Vec<TenantId> = self.lock().of.keys().map(|(tenant, _, _)| tenant.clone()).collect();
        tenants.sort();
        tenants.dedup();
        tenants
    }

    /// The tenant's current windows.
    pub fn status(&self, tenant: &TenantId) -> [WindowStatus; 2] {
        let keys = self.keys(tenant);
        let accounts = self.lock();
        keys.map(|(window, key, resets_at)| {
            let Account { spent, held } = accounts.of.get(&key).copied().unwrap_or_default();
            WindowStatus { window, spent: amount(spent), held: amount(held), resets_at }
        })
    }

    fn release(&self, keys: &[Key; 2], held: NanoUsd, spent: NanoUsd) {
        let now = (self.clock)();
        let mut accounts = self.lock();
        for key in keys {
            let account = accounts.of.entry(key.clone()).or_default();
            account.held -= i128::from(held.nanos());
            account.spent += i128::from(spent.nanos());
        }
        // Windows that are over and empty of holds are of no more use; once a day is enough to look for them.
        let today = Some(BudgetWindow::Day.span(now).0);
        if accounts.swept != today
            && let Ok(oldest) = now.checked_sub(jiff::SignedDuration::from_hours(24 * 32))
        {
            accounts.swept = today;
            accounts.of.retain(|(_, _, first), account| *first > oldest || account.held > 0);
        }
    }
}

/// What settling a hold found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settled {
    /// The truth came out above the hold; it is booked as truth.
    pub overrun: bool,
}

/// Money held for one attempt. Dropped without a word it is booked in full: unknown is never free.
#[must_use = "a dropped hold is booked in full"]
pub struct Hold {
    budgets: Arc<Budgets>,
    keys: [Key; 2],
    attempt: AttemptId,
    amount: NanoUsd,
    settled: bool,
}

impl Hold {
    /// What is held.
    pub fn amount(&self) -> NanoUsd {
        self.amount
    }

    /// Books the truth in the windows the hold was taken in.
    pub fn settle(mut self, cost: Cost) -> Settled {
        self.settled = true;
        self.budgets.release(&self.keys, self.amount, cost.amount);
        Settled { overrun: cost.amount > self.amount }
    }

    /// Gives everything back: the attempt never started.
    pub fn refund(self) {
        self.settle(Cost { amount: NanoUsd::ZERO, basis: CostBasis::Reported });
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        if !self.settled {
            tracing::error!(attempt = %self.attempt, "a hold was dropped unsettled and is booked in full");
            self.budgets.release(&self.keys, self.amount, self.amount);
        }
    }
}

#[cfg(test)]
mod tests;
