//! Time of a decision in process: constrain by rules, score, decide; the scorer alone beside it.

use crate::house::House;
use crate::quantile;
use router::domain::{
    Candidate, Labels, Limits, Message, ModelId, Placement, Request, RequestId, Residency, Role, Route, Score, TenantId,
};
use router::policy::Facts;
use std::time::Instant;

const TEXT: &str = "Our customers write to us about cards, transfers and refunds; most of them want to know when something \
                    arrives, why a payment was declined, or how a fee came about. Please sort the following messages. ";
const CALLS: usize = 400;

const LARGE: &str = "openai/gpt-4.1-mini";

fn candidate(model: &str, route: Route, score: Option<Score>) -> Candidate {
    Candidate { score, ..Candidate::new(ModelId::new(model), route) }
}

fn request(tokens: usize) -> Request {
    let text: String = TEXT.chars().cycle().take(tokens * 4).collect();
    Request {
        id: RequestId::fresh(),
        tenant: TenantId::new("local"),
        key_name: String::new(),
        messages: vec![Message::text(Role::User, text)],
        limits: Limits::default(),
        placement: Placement::Auto,
        placement_floor: Placement::Auto,
        residency: Residency::anywhere(),
        policy: Some("balanced".to_owned()),
        labels: Labels::new(),
        conversation_id: String::new(),
        end_user_id: String::new(),
        deadline: None,
        stream: false,
    }
}

pub fn run(house: &House) -> anyhow::Result<()> {
    println!("## Decision, in process, microseconds\n");
    println!("| tokens (4 bytes each) | constrain + score + decide, p50 | p99 | score alone, p50 | p99 |");
    println!("| ---: | ---: | ---: | ---: | ---: |");
    let scorer = router::score::PairScorer::bundled()?.ok_or_else(|| anyhow::anyhow!("no bundled scorer"))?;
    let snapshot = house.app.services().registry.snapshot();
    let policy = snapshot.policy(Some("balanced")).ok_or_else(|| anyhow::anyhow!("no policy `balanced`"))?;
    for tokens in [100, 500, 2_000, 8_000] {
        let request = request(tokens);
        let (mut whole, mut alone) = (Vec::new(), Vec::new());
        for _ in 0..CALLS {
            let clock = Instant::now();
            let constraints = policy.constrain(&request)?;
            let score = scorer.score(&request.messages)?;
            let candidates =
                vec![candidate("sluice-nano", Route::Local, Some(score)), candidate(LARGE, Route::Remote, None)];
            let facts = Facts { candidates, scorer_version: scorer.version().to_owned(), ..Facts::default() };
            std::hint::black_box(policy.decide(&facts, &constraints)?);
            whole.push(clock.elapsed().as_secs_f64() * 1e6);
            let clock = Instant::now();
            std::hint::black_box(scorer.score(&request.messages)?);
            alone.push(clock.elapsed().as_secs_f64() * 1e6);
        }
        println!(
            "| {tokens} | {:.0} | {:.0} | {:.0} | {:.0} |",
            quantile(&mut whole, 0.5),
            quantile(&mut whole, 0.99),
            quantile(&mut alone, 0.5),
            quantile(&mut alone, 0.99)
        );
    }
    println!();
    Ok(())
}
