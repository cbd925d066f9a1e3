use super::*;
use crate::scorer::Turn;

#[test]
fn long_conversations_are_read_at_head_and_tail_and_unknown_words_keep_their_place() {
    let embedder = StaticEmbedder::shared().unwrap();
    let words = |text: &str| tokens(&embedder, &[Turn::user(text)]);
    assert_eq!(words("hello hello").len(), 2);
    assert_eq!(words(""), Vec::<u32>::new());
    assert_eq!(words(&format!("hello {} hello", "x".repeat(200)))[1], UNKNOWN);
    let both = tokens(&embedder, &[Turn::user("red green"), Turn::user("blue")]);
    assert_eq!(both, words("red green blue"));
    let long = format!("{} {} {}", "head ".repeat(20_000), "middle ".repeat(20_000), "tail ".repeat(20_000));
    let read = tokens(&embedder, &[Turn::user(&long)]);
    assert_eq!(read.len(), MOST_TOKENS);
    let [head, tail] = ["head", "tail"].map(|word| words(word)[0]);
    assert!(read[..MOST_TOKENS / 2].iter().all(|token| *token == head));
    assert!(read[MOST_TOKENS / 2 + 1..].iter().all(|token| *token == tail), "a word may be cut where the tail begins");
    for unit in ["é", "語", "🦀"] {
        assert!(tokens(&embedder, &[Turn::user(&unit.repeat(100_000))]).len() <= MOST_TOKENS);
    }
}

#[cfg(feature = "lab")]
mod lab {
    use super::super::approximation::Head;
    use super::super::backward::Gradients;
    use super::super::favor::{draw, normal};
    use super::super::network::{Network, Pass, VECTOR};
    use super::super::train::{Example, Target, TrainOptions, train};
    use super::*;
    use crate::scorer::FitError;
    use rand::SeedableRng as _;
    use rand::rngs::StdRng;

    const KINDS: [Attention; 2] = [Attention::Softmax, Attention::Favor { features: 24 }];

    fn small(attention: Attention) -> Shape {
        Shape { width: 16, layers: 2, heads: 2, inner: 12, attention }
    }

    /// An encoder whose line says something.
    fn network(shape: Shape, seed: u64) -> Network {
        let mut random = StdRng::seed_from_u64(seed);
        let mut network = Network::begin(shape, 0, &StaticEmbedder::shared().unwrap(), &mut random);
        let lines = shape.places(1).lines;
        network.weights[lines].iter_mut().for_each(|weight| *weight = normal(&mut random) as f32);
        network
    }

    fn performer(shape: Shape, seed: u64) -> Performer {
        Performer::named(network(shape, seed), StaticEmbedder::shared().unwrap())
    }

    /// Estimates of `e^(q·k)` by single draws: their mean, and its standard error.
    fn estimates(query: &[f32], key: &[f32], features: usize, seed: u64) -> (f64, f64) {
        let mut random = StdRng::seed_from_u64(seed);
        let product = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| f64::from(a * b)).sum::<f64>();
        let squares = (product(query, query) + product(key, key)) / 2.0;
        let values: Vec<f64> = (0..400)
            .map(|_| {
                let rows = draw(features, query.len(), &mut random);
                let terms = rows.chunks_exact(query.len());
                terms.map(|row| (product(row, query) + product(row, key) - squares).exp()).sum::<f64>()
                    / features as f64
            })
            .collect();
        let mean = values.iter().sum::<f64>() / 400.0;
        let spread = values.iter().map(|value| (value - mean).powi(2)).sum::<f64>() / 399.0;
        (mean, (spread / 400.0).sqrt())
    }

    #[test]
    fn the_estimate_of_the_kernel_is_unbiased_whichever_draw_is_taken() {
        let mut random = StdRng::seed_from_u64(3);
        for (length, features) in [(0.5, 16), (1.0, 40), (1.3, 7)] {
            let mut row = || -> Vec<f32> { (0..16).map(|_| (normal(&mut random) * length / 4.0) as f32).collect() };
            let (query, key) = (row(), row());
            let exact = query.iter().zip(&key).map(|(q, k)| f64::from(q * k)).sum::<f64>().exp();
            let (first, error) = estimates(&query, &key, features, 1);
            let (second, _) = estimates(&query, &key, features, 2);
            assert!(first != second, "a redraw changes the estimate");
            for found in [first, second] {
                assert!((found - exact).abs() < 4.0 * error, "{found} for {exact}, standard error {error}");
            }
            assert!(error < 0.2 * exact, "the test could see a bias: {error} of {exact}");
        }
    }

    #[test]
    fn rows_of_a_block_are_orthogonal_and_as_long_as_normal_vectors() {
        let mut random = StdRng::seed_from_u64(5);
        let (width, count) = (16, 16 * 40 + 5);
        let rows = draw(count, width, &mut random);
        assert_eq!(rows.len(), count * width);
        let product = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| f64::from(a * b)).sum::<f64>();
        for block in rows.chunks(width * width) {
            let block: Vec<&[f32]> = block.chunks_exact(width).collect();
            for (at, a) in block.iter().enumerate() {
                for b in &block[..at] {
                    let cosine = product(a, b) / (product(a, a) * product(b, b)).sqrt();
                    assert!(cosine.abs() < 1e-5, "{cosine}");
                }
            }
        }
        // The squared length is chi-squared: mean 16, variance 32.
        let squares: Vec<f64> = rows.chunks_exact(width).map(|row| product(row, row)).collect();
        let mean = squares.iter().sum::<f64>() / count as f64;
        let variance = squares.iter().map(|square| (square - mean).powi(2)).sum::<f64>() / (count - 1) as f64;
        assert!((mean - 16.0).abs() < 4.0 * (32.0 / count as f64).sqrt(), "{mean}");
        assert!((20.0..46.0).contains(&variance), "{variance}");
        assert_ne!(rows, draw(count, width, &mut random), "another draw");
    }

    #[test]
    fn the_error_falls_with_features_and_rises_with_norms() {
        let mut random = StdRng::seed_from_u64(7);
        let error = |norm: f64, features: usize, random: &mut StdRng| {
            let head = Head::random(96, 16, norm, random);
            let exact = head.exact();
            (0..24).map(|_| head.error(&exact, features, random)).sum::<f64>() / 24.0
        };
        let errors: Vec<f64> = [16, 64, 256, 1024].map(|features| error(1.0, features, &mut random)).to_vec();
        for pair in errors.windows(2) {
            // 1/√m would halve it.
            assert!((0.3..0.75).contains(&(pair[1] / pair[0])), "{errors:?}");
        }
        assert!(errors[3] < 0.25, "{errors:?}");
        assert!(error(2.0, 256, &mut random) > 1.5 * errors[2], "{errors:?}");
    }

    #[test]
    fn softmax_attention_is_the_textbooks() {
        let mut random = StdRng::seed_from_u64(11);
        let head = Head::random(150, 8, 2.0, &mut random);
        let rows = |values| super::super::attention::Rows::new(values, 0, 8, 8);
        let (mut shares, mut out) = (vec![0.0; 150 * 150], vec![0.0; 150 * 8]);
        let seen = (rows(&head.keys), rows(&head.values), 150);
        let level = crate::kernels::Level::detect();
        for keep in [false, true] {
            let queries = (rows(&head.queries), 150);
            super::super::attention::look(level, queries, seen, &mut shares, keep, (&mut out, 8));
            for (found, exact) in out.iter().zip(head.exact()) {
                assert!((f64::from(*found) - exact).abs() < 1e-5, "{found} for {exact}");
            }
        }
        assert!(shares.chunks(150).all(|shares| (shares.iter().sum::<f32>() - 1.0).abs() < 1e-5));
    }

    #[test]
    fn long_rows_and_huge_norms_stay_numbers_between_the_values() {
        let mut random = StdRng::seed_from_u64(13);
        let rows = draw(32, 16, &mut random);
        for (tokens, norm) in [(8192, 1.0), (300, 1e2), (300, 1e5), (40, 1e12), (40, 1e19), (40, 3e37)] {
            let mut head = Head::random(tokens, 16, 1.0, &mut random);
            for value in head.queries.iter_mut().chain(&mut head.keys) {
                *value *= norm as f32;
            }
            let (least, most) =
                head.values.iter().fold((0.0f32, 0.0f32), |(l, m), value| (l.min(*value), m.max(*value)));
            let out = head.favor(&rows);
            // Shares are positive and add up to one.
            let slack = 1e-3 * (most - least);
            assert!(
                out.iter().all(|value| *value >= least - slack && *value <= most + slack),
                "{tokens} tokens of norm {norm}"
            );
        }
    }

    #[test]
    fn chunks_give_what_the_whole_gives() {
        let embedder = StaticEmbedder::shared().unwrap();
        for kind in KINDS {
            let network = network(small(kind), 17);
            for length in [1, 2, 63, 64, 65, 300, 700] {
                let tokens: Vec<u32> =
                    (0..length).map(|at| if at % 11 == 3 { UNKNOWN } else { at * 37 % 9000 }).collect();
                let (mut chunked, mut whole) = (Pass::default(), Pass::default());
                network.forward(&embedder, &tokens, &mut chunked, false);
                network.forward(&embedder, &tokens, &mut whole, true);
                let apart = chunked.state.iter().zip(&whole.state).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
                let largest = whole.state.iter().fold(0.0f32, |most, value| most.max(value.abs()));
                assert!(apart < 2e-4 * largest, "{kind:?} {length}: {apart} of {largest}");
            }
        }
    }

    #[test]
    fn memory_grows_with_the_length_and_the_performers_is_less() {
        let bytes = |kind, words: usize| performer(Shape::usual(kind), 1).read(&[Turn::user(&"word ".repeat(words))]);
        let favor = Attention::Favor { features: Shape::FEATURES };
        let [short, long] = [512, 8192].map(|words| bytes(favor, words));
        assert_eq!((short.tokens, long.tokens), (512, 8192));
        // Beside what is fixed, one row of the width a token.
        assert!(long.bytes - short.bytes <= (8192 - 512) * 64 * 4 + 4096, "{short:?} {long:?}");
        assert!(bytes(Attention::Softmax, 8192).bytes > 2 * long.bytes);
    }

    #[test]
    fn gradients_are_those_of_finite_differences() {
        let embedder = StaticEmbedder::shared().unwrap();
        let tokens: Vec<u32> = [5, 900, UNKNOWN, 5, 77, 4000, 12, 13, 900].to_vec();
        for kind in KINDS {
            let mut network = network(small(kind), 19);
            let pull: Vec<f32> = (0..16).map(|at| ((at * 7 % 5) as f32 - 2.0) * 0.3).collect();
            let value = |network: &Network| -> f64 {
                let mut pass = Pass::default();
                network.forward(&embedder, &tokens, &mut pass, true);
                let mean = network.mean(tokens.len(), &pass);
                mean.iter().zip(&pull).map(|(mean, pull)| f64::from(*mean) * f64::from(*pull)).sum()
            };
            let (mut pass, mut gradients) = (Pass::default(), Gradients::default());
            // Twice, to see that kept buffers do no harm and that gradients are added.
            gradients.clear(network.weights.len());
            for _ in 0..2 {
                network.forward(&embedder, &tokens, &mut pass, true);
                gradients.add_text(&network, &pass, tokens.len(), &pull);
            }
            let places = network.shape.places(1);
            let layer = |at: usize| places.layers[at].clone();
            let tensors = [
                ("input", places.input.clone()),
                ("norm", layer(0).norm),
                ("query", layer(0).query),
                ("key and value", layer(0).key_value),
                ("key and value of the last", layer(1).key_value),
                ("out", layer(1).out),
                ("second norm", layer(1).second_norm),
                ("gate and up", layer(0).gate_up),
                ("down", layer(0).down),
                ("last norm", places.norm.clone()),
            ];
            for (name, place) in tensors {
                // Along the gradient itself, where it is largest, and at single weights.
                let found = &gradients.weights[place.clone()];
                let length = found.iter().map(|value| f64::from(*value).powi(2)).sum::<f64>().sqrt() / 2.0;
                assert!(length > 1e-6, "{name} of {kind:?} gets a gradient");
                let direction: Vec<f32> = found.iter().map(|value| (f64::from(*value) / 2.0 / length) as f32).collect();
                let single = |at: usize| -> Vec<f32> {
                    (0..found.len()).map(|other| f32::from(u8::from(other == at))).collect()
                };
                let largest = (0..found.len()).max_by(|a, b| found[*a].abs().total_cmp(&found[*b].abs())).unwrap();
                for direction in [direction, single(largest), single(found.len() / 3)] {
                    let wanted: f64 =
                        found.iter().zip(&direction).map(|(value, along)| f64::from(value * along) / 2.0).sum();
                    let kept = network.weights.clone();
                    let step = 4e-3;
                    let mut moved = |by: f32| {
                        network.weights.clone_from(&kept);
                        let weights = &mut network.weights[place.clone()];
                        weights.iter_mut().zip(&direction).for_each(|(weight, along)| *weight += by * along);
                        value(&network)
                    };
                    let slope = (moved(step) - moved(-step)) / (2.0 * f64::from(step));
                    network.weights.clone_from(&kept);
                    let apart = (slope - wanted).abs();
                    assert!(
                        apart < 0.02 * wanted.abs() + 0.003 * length + 2e-4,
                        "{name} of {kind:?}: {wanted} for {slope}"
                    );
                }
            }
            assert_eq!(places.input.len(), 16 * VECTOR);
        }
    }

    #[test]
    fn a_file_comes_back_the_same_and_a_damaged_one_is_refused_by_kind() {
        for kind in KINDS {
            let made = performer(small(kind), 23);
            let bytes = made.to_bytes();
            let read = Performer::from_bytes(&bytes).unwrap();
            assert_eq!((&read, read.version()), (&made, made.version()));
            let turns = [Turn::user("What is the capital of France? Answer in one word.")];
            assert_eq!(read.score(&turns), made.score(&turns));
            let error = |bytes: &[u8]| Performer::from_bytes(bytes).unwrap_err();
            assert_eq!(error(b"SLSCORE\x01 and more"), PerformerFileError::Magic);
            assert_eq!(error(b""), PerformerFileError::Magic);
            let mut other = bytes.clone();
            other[7] = 9;
            assert_eq!(error(&other), PerformerFileError::Version { found: 9 });
            for at in [8, 40, bytes.len() / 2, bytes.len() - 1] {
                let mut damaged = bytes.clone();
                damaged[at] ^= 1;
                assert_eq!(error(&damaged), PerformerFileError::Hash, "byte {at}");
            }
            for length in [7, 8, 20, 43] {
                assert!(matches!(error(&bytes[..length]), PerformerFileError::Length { .. }), "{length} bytes");
            }
            assert_eq!(error(&bytes[..bytes.len() - 1]), PerformerFileError::Hash);
            // With a right hash, but of what can't be.
            let resealed = |mut body: Vec<u8>| {
                body.extend(blake3::hash(&body).as_bytes());
                error(&body)
            };
            let body = &bytes[..bytes.len() - 32];
            let PerformerFileError::Length { .. } = resealed([body, &[0; 4]].concat()) else { panic!("too long") };
            let mut wild = body.to_vec();
            let at = wild.len() - 4;
            wild[at..].copy_from_slice(&f32::NAN.to_le_bytes());
            assert!(resealed(wild).to_string().contains("NaN"));
            let header = String::from_utf8_lossy(body).find("\"heads\":2").unwrap();
            let mut heads = body.to_vec();
            heads[header + 8] = b'3';
            let said = resealed(heads).to_string();
            assert!(said.contains("3 heads don't divide"), "{said}");
        }
    }

    #[test]
    fn words_and_line_add_up_to_the_score() {
        for kind in KINDS {
            let made = performer(small(kind), 29);
            let turns = [Turn::user("Prove, unbelievably, that primes never end. Primes!")];
            let tokens = made.tokens(&turns);
            let words: f64 = made.reasons(&turns, usize::MAX).iter().map(|reason| reason.push).sum();
            let lines = &made.network.weights[made.network.shape.places(1).lines];
            let rest = f64::from(lines[16] * super::super::network::length_sign(tokens.len())) + f64::from(lines[17]);
            assert!((words + rest - made.score(&turns)).abs() < 1e-4, "{kind:?}");
            assert!(made.reasons(&turns, 2).len() == 2);
            assert!(made.reasons(&turns, 99).iter().any(|reason| reason.what == "\"primes\""));
            let other = made.rescaled(2.0, -1.0);
            assert!((other.score(&turns) - (2.0 * made.score(&turns) - 1.0)).abs() < 1e-4);
            assert_ne!(other.version(), made.version());
            assert!(made.score(&[]).is_finite() && made.reasons(&[], 5).is_empty());
        }
    }

    #[test]
    fn training_learns_repeats_itself_and_shares_between_tasks() {
        let texts: Vec<(String, f32)> = (0..240)
            .map(|at| {
                let good = at % 2 == 0;
                let ask = if good { "Is this message spam" } else { "Prove the theorem about" };
                (format!("{ask} number {} {}", at % 37, "and so on ".repeat(at % 5)), if good { 1.0 } else { -1.0 })
            })
            .collect();
        // The second task saw two prompts of ten.
        let targets = |at: usize, value: f32| {
            let tasks = [0, 1].into_iter().filter(move |task| *task == 0 || at % 10 < 2);
            tasks.map(|task| Target { task, value, weight: 1.0 }).collect()
        };
        let texts_and_values = texts.iter().enumerate();
        let examples: Vec<Example<'_>> = texts_and_values
            .map(|(at, (text, value))| Example { turns: vec![Turn::user(text)], targets: targets(at, *value) })
            .collect();
        for kind in KINDS {
            let options = |seed| TrainOptions {
                shape: small(kind),
                epochs: 4,
                batch: 8,
                redraw: 5,
                ..TrainOptions::usual(kind, seed)
            };
            let mut losses = Vec::new();
            let trained = train(&examples, 2, &options(1), |progress| losses.push(progress.loss)).unwrap();
            assert!(losses.len() == 4 && losses[3] < 0.2 * losses[0].min(1.0), "{kind:?} {losses:?}");
            for task in [0, 1] {
                let made = trained.task(task).unwrap();
                let [good, bad] = ["Is this message spam number 99", "Prove the theorem about number 99"]
                    .map(|text| made.score(&[Turn::user(text)]));
                assert!(good > 0.5 && bad < -0.5, "{kind:?} task {task}: {good} {bad}");
            }
            assert!(trained.task(2).is_none());
            let bytes = |seed| train(&examples, 2, &options(seed), |_| ()).unwrap().task(0).unwrap().to_bytes();
            assert_eq!(trained.task(0).unwrap().to_bytes(), bytes(1), "the same seed, the same bytes");
            assert_ne!(bytes(1), bytes(2));
        }
        let refused = |examples: &[Example<'_>], options| train(examples, 1, &options, |_| ()).unwrap_err();
        let usual = || TrainOptions::usual(Attention::Softmax, 1);
        assert_eq!(refused(&[], usual()), FitError::Empty);
        assert!(matches!(refused(&examples, usual()), FitError::Example { place: 0, .. }), "a task that is not there");
        let shape = Shape { heads: 5, ..small(Attention::Softmax) };
        let sizes = refused(&examples[2..5], TrainOptions { shape, ..usual() });
        assert!(sizes.to_string().contains("5 heads don't divide a width of 16"), "{sizes}");
    }
}
