use super::*;
use proptest::prelude::*;
use std::cell::Cell;

thread_local! {
    static NOW: Cell<i64> = const { Cell::new(0) };
}

/// 2026-01-31 12:00:00 UTC.
const NOON: i64 = 1_769_860_800;

fn clock() -> Timestamp {
    Timestamp::from_second(NOON + NOW.get()).unwrap()
}

fn reported(nanos: i64) -> Cost {
    Cost { amount: NanoUsd::new(nanos), basis: CostBasis::Reported }
}

#[derive(Clone, Debug)]
enum Step {
    Hold { tenant: u8, amount: i64 },
    Settle { which: usize, share: f64 },
    Refund { which: usize },
    Drop { which: usize },
    Wait { seconds: i64 },
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        4 => (0..3_u8, 0..400_i64).prop_map(|(tenant, amount)| Step::Hold { tenant, amount }),
        2 => (0..50_usize, 0.0..1.0_f64).prop_map(|(which, share)| Step::Settle { which, share }),
        1 => (0..50_usize).prop_map(|which| Step::Refund { which }),
        1 => (0..50_usize).prop_map(|which| Step::Drop { which }),
        1 => (0..20_000_i64).prop_map(|seconds| Step::Wait { seconds }),
    ];
    prop::collection::vec(step, 1..120)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    /// Whatever the order of holds, settlements, refunds, drops and midnights: spent + held never passes the limit, and
    /// what is spent is exactly what was settled.
    #[test]
    fn no_interleaving_exceeds_the_limit(steps in steps()) {
        NOW.set(0);
        let budgets = Arc::new(Budgets::with_clock(clock));
        let limits = BudgetLimits { daily: Some(NanoUsd::new(1_000)), monthly: Some(NanoUsd::new(2_500)) };
        let tenants: Vec<TenantId> = (0..3).map(|n| TenantId::new(format!("t{n}"))).collect();
        let mut open: Vec<(Key, Hold)> = Vec::new();
        let mut settled: HashMap<Key, i64> = HashMap::new();
        let mut book = |keys: &[Key; 2], nanos: i64| {
            for key in keys {
                *settled.entry(key.clone()).or_default() += nanos;
            }
        };
        for step in steps {
            match step {
                Step::Hold { tenant, amount } => {
                    let tenant = &tenants[usize::from(tenant)];
                    let before = budgets.status(tenant);
                    match budgets.hold(tenant, AttemptId::fresh(), NanoUsd::new(amount), &limits) {
                        Ok(hold) => open.push((hold.keys[0].clone(), hold)),
                        Err(BudgetError::Exhausted { window, .. }) => {
                            let status = before.iter().find(|status| status.window == window).unwrap();
                            let limit = limits.of(window).unwrap();
                            prop_assert!((status.spent + status.held + NanoUsd::new(amount)) > limit, "refused without need");
                            prop_assert_eq!(&budgets.status(tenant), &before, "a refusal holds nothing");
                        }
                    }
                }
                Step::Settle { which, share } if !open.is_empty() => {
                    let (_, hold) = open.swap_remove(which % open.len());
                    let cost = (hold.amount().nanos() as f64 * share) as i64;
                    book(&hold.keys.clone(), cost);
                    prop_assert!(!hold.settle(reported(cost)).overrun);
                }
                Step::Refund { which } if !open.is_empty() => open.swap_remove(which % open.len()).1.refund(),
                Step::Drop { which } if !open.is_empty() => {
                    let (_, hold) = open.swap_remove(which % open.len());
                    book(&hold.keys.clone(), hold.amount().nanos());
                }
                Step::Wait { seconds } => NOW.set(NOW.get() + seconds),
                _ => {}
            }
            for tenant in &tenants {
                for status in budgets.status(tenant) {
                    let limit = limits.of(status.window).unwrap();
                    prop_assert!(status.spent + status.held <= limit, "{status:?}");
                }
            }
        }
        for tenant in &tenants {
            for status in budgets.status(tenant) {
                let key = (tenant.clone(), status.window, status.window.span(clock()).0);
                prop_assert_eq!(status.spent.nanos(), settled.get(&key).copied().unwrap_or(0));
            }
        }
    }
}

#[test]
fn threads_that_race_never_exceed_the_limit_either() {
    let budgets = Arc::new(Budgets::default());
    let tenant = TenantId::new("t");
    let limits = BudgetLimits { daily: Some(NanoUsd::new(10_000)), monthly: None };
    let spent: i64 = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..8_i64)
            .map(|thread| {
                let (budgets, tenant) = (Arc::clone(&budgets), tenant.clone());
                scope.spawn(move || {
                    let mut spent = 0;
                    for round in 0..2_000_i64 {
                        let amount = 1 + (thread * 31 + round * 17) % 97;
                        let Ok(hold) = budgets.hold(&tenant, AttemptId::fresh(), NanoUsd::new(amount), &limits) else {
                            continue;
                        };
                        let [day, _] = budgets.status(&tenant);
                        assert!(day.spent + day.held <= NanoUsd::new(10_000));
                        if round % 3 == 0 {
                            hold.refund();
                        } else {
                            spent += amount / 2;
                            hold.settle(reported(amount / 2));
                        }
                    }
                    spent
                })
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).sum()
    });
    let [day, _] = budgets.status(&tenant);
    assert_eq!((day.spent.nanos(), day.held.nanos()), (spent, 0));
    assert!(spent <= 10_000);
}

#[test]
fn a_hold_counts_in_the_window_it_was_taken_in() {
    NOW.set(0);
    let budgets = Arc::new(Budgets::with_clock(clock));
    let tenant = TenantId::new("t");
    let limits = BudgetLimits { daily: Some(NanoUsd::new(100)), monthly: None };
    let hold = budgets.hold(&tenant, AttemptId::fresh(), NanoUsd::new(100), &limits).unwrap();
    // Over midnight, which here is also the end of the month.
    NOW.set(13 * 3_600);
    let [day, month] = budgets.status(&tenant);
    assert_eq!((day.held, month.held), (NanoUsd::ZERO, NanoUsd::ZERO));
    hold.settle(reported(100));
    assert_eq!(budgets.status(&tenant)[0].spent, NanoUsd::ZERO, "yesterday's money");
    NOW.set(0);
    assert_eq!(budgets.status(&tenant)[0].spent.nanos(), 100);
}

#[test]
fn overruns_are_booked_as_truth_and_said() {
    let budgets = Arc::new(Budgets::default());
    let tenant = TenantId::new("t");
    let hold = budgets.hold(&tenant, AttemptId::fresh(), NanoUsd::new(10), &BudgetLimits::default()).unwrap();
    assert!(hold.settle(reported(11)).overrun);
    assert_eq!(budgets.status(&tenant)[1].spent.nanos(), 11);
}

#[test]
fn the_largest_holds_do_not_blunt_the_sums() {
    let budgets = Arc::new(Budgets::default());
    let tenant = TenantId::new("t");
    let hold = |nanos, limit: Option<i64>| {
        let limits = BudgetLimits { daily: limit.map(NanoUsd::new), monthly: None };
        budgets.hold(&tenant, AttemptId::fresh(), NanoUsd::new(nanos), &limits)
    };
    // Two holds of a policy without limits and with an unknown bound; then both go.
    let (first, second) = (hold(i64::MAX, None).unwrap(), hold(i64::MAX, None).unwrap());
    first.refund();
    assert!(hold(1, Some(100)).is_err(), "the second one still holds all there is");
    second.refund();
    let small = hold(100, Some(100)).unwrap();
    assert!(hold(1, Some(100)).is_err());
    // A negative amount makes no room.
    let negative = hold(-50, Some(100)).unwrap();
    assert!(hold(1, Some(100)).is_err());
    negative.refund();
    small.refund();
    assert_eq!(budgets.status(&tenant)[0].held, NanoUsd::ZERO);
}

#[test]
fn windows_long_over_are_dropped_but_not_those_with_holds() {
    NOW.set(0);
    let budgets = Arc::new(Budgets::with_clock(clock));
    let hold = |name: &str| {
        budgets.hold(&TenantId::new(name), AttemptId::fresh(), NanoUsd::new(1), &BudgetLimits::default()).unwrap()
    };
    hold("old").settle(reported(1));
    let open = hold("open");
    NOW.set(70 * 86_400);
    hold("new").settle(reported(1));
    assert_eq!(budgets.tenants(), [TenantId::new("new"), TenantId::new("open")]);
    open.refund();
}
