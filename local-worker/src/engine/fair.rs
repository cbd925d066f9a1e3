//! Whose turn it is: requests wait in one line for each tenant, and the tenant that has had least goes first.
//!
//! Each tenant has an account of the tokens it was served, output tokens counting [`OUTPUT`] times, divided by its weight. A
//! tenant that comes back from idleness starts at the least account of those that are busy, so it can neither save up turns
//! nor be made to wait for what others had meanwhile (Sheng et al., "Fairness in Serving Large Language Models", 2024). One
//! tenant with a thousand requests therefore delays another's first by what is running, and by nothing that waits.

use std::collections::{BTreeMap, VecDeque};

use super::prefix::Tenant;

/// What an output token counts, beside a prompt token's 1: it costs about so much more where few sequences run.
pub(super) const OUTPUT: f64 = 2.0;

/// The lines of all tenants.
#[derive(Debug)]
pub(super) struct Fair<T> {
    accounts: BTreeMap<Tenant, Account<T>>,
    weights: BTreeMap<String, u32>,
    waiting: usize,
    arrivals: u64,
}

#[derive(Debug)]
struct Account<T> {
    line: VecDeque<(u64, T)>,
    running: usize,
    /// Weighted tokens served.
    used: f64,
}

impl<T> Account<T> {
    fn busy(&self) -> bool {
        self.running > 0 || !self.line.is_empty()
    }
}

impl<T> Fair<T> {
    /// Without anyone; a tenant not named has weight 1.
    pub fn new(weights: BTreeMap<String, u32>) -> Self {
        Self { accounts: BTreeMap::new(), weights, waiting: 0, arrivals: 0 }
    }

    /// Requests waiting.
    pub fn waiting(&self) -> usize {
        self.waiting
    }

    /// Requests of one tenant waiting.
    pub fn waiting_of(&self, tenant: &Tenant) -> usize {
        self.accounts.get(tenant).map_or(0, |account| account.line.len())
    }

    /// Tenants with requests waiting.
    pub fn lines(&self) -> usize {
        self.accounts.values().filter(|account| !account.line.is_empty()).count()
    }

    /// Queues a request.
    pub fn push(&mut self, tenant: &Tenant, item: T) {
        let least = self.least();
        let empty = || Account { line: VecDeque::new(), running: 0, used: 0.0 };
        let account = self.accounts.entry(tenant.clone()).or_insert_with(empty);
        if !account.busy() {
            account.used = least.map_or(account.used, |least| account.used.max(least));
        }
        account.line.push_back((self.arrivals, item));
        self.arrivals += 1;
        self.waiting += 1;
    }

    /// The request whose turn it is.
    pub fn first(&self) -> Option<(&Tenant, &T)> {
        let lines = self.accounts.iter().filter_map(|(tenant, account)| Some((tenant, account, account.line.front()?)));
        let next = lines.min_by(|(_, a, (at, _)), (_, b, (bt, _))| {
            a.used.total_cmp(&b.used).then(a.running.cmp(&b.running)).then(at.cmp(bt))
        })?;
        Some((next.0, &next.2.1))
    }

    /// Takes the request whose turn it is out of its line; it runs now.
    pub fn pop(&mut self) -> Option<T> {
        let tenant = self.first()?.0.clone();
        let account = self.accounts.get_mut(&tenant)?;
        let (_, item) = account.line.pop_front()?;
        account.running += 1;
        self.waiting -= 1;
        Some(item)
    }

    /// Books tokens for a tenant.
    pub fn charge(&mut self, tenant: &Tenant, tokens: f64) {
        let weight = tenant.as_ref().and_then(|name| self.weights.get(&**name)).copied().unwrap_or(1).max(1);
        if let Some(account) = self.accounts.get_mut(tenant) {
            account.used += tokens / f64::from(weight);
        }
    }

    /// A request that ran has ended.
    pub fn end(&mut self, tenant: &Tenant) {
        if let Some(account) = self.accounts.get_mut(tenant) {
            account.running = account.running.saturating_sub(1);
        }
        self.forget_idle();
    }

    /// Takes out requests that need not wait any more.
    pub fn take_if(&mut self, mut gone: impl FnMut(&T) -> bool) -> Vec<T> {
        let mut taken = Vec::new();
        for account in self.accounts.values_mut() {
            for (at, item) in std::mem::take(&mut account.line) {
                if gone(&item) {
                    taken.push(item);
                } else {
                    account.line.push_back((at, item));
                }
            }
        }
        self.waiting -= taken.len();
        if !taken.is_empty() {
            self.forget_idle();
        }
        taken
    }

    /// Requests that go before a new one of this tenant: its own line, and of each other as many as would take turns with it.
    pub fn before<'a>(&'a self, tenant: &'a Tenant) -> impl Iterator<Item = &'a T> {
        let own = self.waiting_of(tenant);
        self.accounts.iter().flat_map(move |(other, account)| {
            let most = if other == tenant { own } else { own + 1 };
            account.line.iter().take(most).map(|(_, item)| item)
        })
    }

    fn least(&self) -> Option<f64> {
        self.accounts.values().filter(|account| account.busy()).map(|account| account.used).min_by(f64::total_cmp)
    }

    /// An idle account that is not ahead of the busy ones says nothing a new one would not.
    fn forget_idle(&mut self) {
        let least = self.least().unwrap_or(f64::INFINITY);
        self.accounts.retain(|_, account| account.busy() || account.used > least);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    fn tenant(name: &str) -> Tenant {
        Some(Arc::from(name))
    }

    /// Serves one at a time at a cost of 10 each, and returns whose turns they were.
    fn serve(fair: &mut Fair<&'static str>, turns: usize) -> String {
        let mut served = String::new();
        for _ in 0..turns {
            let Some(name) = fair.pop() else { break };
            fair.charge(&tenant(name), 10.0);
            fair.end(&tenant(name));
            served.push_str(name);
        }
        served
    }

    #[test]
    fn a_thousand_of_one_do_not_keep_another_waiting() {
        let mut fair = Fair::new(BTreeMap::new());
        (0..1000).for_each(|_| fair.push(&tenant("a"), "a"));
        assert_eq!(serve(&mut fair, 500).len(), 500);
        (0..3).for_each(|_| fair.push(&tenant("b"), "b"));
        assert_eq!((fair.before(&tenant("b")).count(), fair.before(&tenant("c")).count()), (3 + 4, 2));
        let served = serve(&mut fair, 7);
        assert_eq!(served.matches('b').count(), 3, "{served}: turn and turn about");
        assert_eq!(serve(&mut fair, 1000), "a".repeat(496));
        assert_eq!((fair.waiting(), fair.accounts.len()), (0, 0));
    }

    #[test]
    fn weights_divide_and_idleness_saves_nothing_up() {
        let mut fair = Fair::new(BTreeMap::from([("b".to_owned(), 3)]));
        for _ in 0..100 {
            fair.push(&tenant("a"), "a");
            fair.push(&tenant("b"), "b");
        }
        let served = serve(&mut fair, 80);
        assert_eq!(served.matches('b').count(), 60, "{served}");
        fair.push(&tenant("c"), "c");
        (0..50).for_each(|_| fair.push(&tenant("c"), "c"));
        let served = serve(&mut fair, 25);
        assert_eq!(served.matches('c').count(), 5, "{served}: a fifth by weight, though it had nothing so far");
        assert_eq!(fair.take_if(|name| *name == "c").len(), 46);
        assert_eq!((fair.waiting_of(&tenant("c")), fair.lines()), (0, 2));
        assert_eq!(fair.waiting(), serve(&mut fair, 1000).len());
    }
}
