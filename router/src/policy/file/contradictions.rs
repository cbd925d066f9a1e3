//! Settings that are each right and cannot all be meant: better a problem now than a request refused at night.

use crate::domain::{NanoUsd, Placement};
use crate::policy::live::BreachAction;
use crate::policy::{Objective, OnExhausted, Policy};
use crate::toml_file::{Problems, Section};
use std::collections::BTreeSet;

/// Adds a problem for each contradiction.
pub fn find(policy: &Policy, root: &Section<'_, '_>, problems: &mut Problems<'_>) {
    let (no_small, no_large) = (policy.small.is_empty(), policy.large.is_empty());
    let never_local = no_small || policy.placement == Placement::RemoteOnly;
    let never_remote = no_large || policy.placement == Placement::LocalOnly;
    let why = |route: &str, lacking: bool| match lacking {
        true => format!("but the policy has no {route} model"),
        false => format!("but the policy's placement is `{}`", policy.placement.as_str()),
    };
    if (policy.placement == Placement::LocalOnly && no_small) || (policy.placement == Placement::RemoteOnly && no_large)
    {
        let message = "no model of the policy can serve under it";
        problems.add(root.span_of("placement"), "placement", message, "name one in [models]");
    }
    if policy.on_exhausted == OnExhausted::LocalOnly && never_local {
        let message = format!("an exhausted budget should go local, {}", why("small", no_small));
        problems.add(root.span_in("budget", "on_exhausted"), "budget.on_exhausted", message, "use `reject`");
    }
    if policy.local_when_remote_is_down && never_local {
        let message = format!("should go local when remote is down, {}", why("small", no_small));
        problems.add(root.span_in("fallback", "remote_down"), "fallback.remote_down", message, "use `error`");
    }
    if policy.escalate && root.has_in("escalate", "enabled") && never_remote {
        let message = format!("a declined draft should escalate, {}", why("large", no_large));
        problems.add(root.span_in("escalate", "enabled"), "escalate.enabled", message, "use `false`, or leave it out");
    }
    if policy.exploration > 0.0 && (never_local || never_remote) {
        let message = "there is nothing to explore: only one side can serve";
        problems.add(root.span_in("exploration", "share"), "exploration.share", message, "leave it out");
    }
    if policy.shadow.is_some() && (never_local || never_remote || policy.placement != Placement::Auto) {
        let message = "there is nothing to compare: a score never decides between the two sides";
        problems.add(root.span_of("shadow"), "shadow", message, "leave it out");
    }
    if policy.learn.is_some() {
        find_in_learning(policy, root, problems);
    }
    if let (Some(daily), Some(monthly)) = (policy.budget.daily, policy.budget.monthly)
        && daily > monthly
    {
        let message = "a day may cost more than its month";
        problems.add(
            root.span_in("budget", "per_tenant"),
            "budget.per_tenant",
            message,
            "the month's limit ends it first",
        );
    }
    find_in_objective(policy, (never_local, never_remote), root, problems);
    let mut names = BTreeSet::new();
    for (index, test) in policy.tests.iter().enumerate() {
        if !names.insert(test.name.as_str()) {
            let message = format!("another test is called `{}` already", test.name);
            problems.add(test.span.clone(), &format!("tests[{index}].name"), message, "tell them apart");
        }
    }
}

/// What outcomes can't be learnt from, or proven by.
fn find_in_learning(policy: &Policy, root: &Section<'_, '_>, problems: &mut Problems<'_>) {
    let mut add = |message: &str, suggestion: &str| problems.add(root.span_of("learn"), "learn", message, suggestion);
    if !matches!(policy.objective, Objective::MinCost { .. }) {
        add("there is no quality target that a certificate could be solved for", "use goal = \"min-cost\"");
    }
    match &policy.shadow {
        None => add("there is nothing to learn from", "let a share of requests be compared: [shadow]"),
        Some(shadow) if shadow.daily == NanoUsd::ZERO => {
            add("what is served locally can't be compared without money, and would count as wrong", "set shadow.daily");
        }
        Some(_) => {}
    }
    if policy.exploration > 0.0 {
        add("exploration shows answers that no certificate stands for", "leave it out: shadow runs show nothing");
    }
}

/// What a goal and the stickiness of conversations can't be meant with.
fn find_in_objective(
    policy: &Policy,
    (never_local, never_remote): (bool, bool),
    root: &Section<'_, '_>,
    problems: &mut Problems<'_>,
) {
    if policy.sticky.is_some() && never_remote {
        let message = "a conversation can't stay where none can go: no large model may serve";
        problems.add(root.span_of("sticky"), "sticky", message, "leave it out");
    }
    if !matches!(policy.objective, Objective::MaxQuality(_)) {
        return;
    }
    if never_local || never_remote {
        let message = match never_local {
            true => "under a ceiling on cost something has to serve when there is no money, but no small model may",
            false => "there is nothing to spend on: no large model may serve",
        };
        let suggestion = "name both in [models], or use another goal";
        problems.add(root.span_in("objective", "goal"), "objective.goal", message, suggestion);
    }
    let actions = [("quality", policy.on_breach.quality), ("drift", policy.on_breach.drift)];
    for (key, action) in actions.into_iter().filter(|(_, action)| *action != BreachAction::Alarm) {
        let message = format!("`{}` would spend more, and the goal is a ceiling on cost", action.as_str());
        problems.add(root.span_in("on_breach", key), &format!("on_breach.{key}"), message, "use `alarm`");
    }
}
