use std::collections::HashMap;

use super::*;
use tokenizers::models::wordpiece::WordPiece as Reference;
use tokenizers::normalizers::BertNormalizer;
use tokenizers::pre_tokenizers::bert::BertPreTokenizer;
use wordpiece::WordPiece;

fn table(pieces: &[&str], dims: usize, vector: impl Fn(usize, usize) -> i8) -> Vec<u8> {
    let vocabulary: String = pieces.iter().map(|piece| format!("{piece}\n")).collect();
    let header = serde_json::json!({
        "name": "toy", "dims": dims, "rows": pieces.len(), "vocabulary_bytes": vocabulary.len()
    });
    let rows =
        (0..pieces.len()).flat_map(|row| (0..dims).map(move |at| (row, at))).map(|(row, at)| vector(row, at) as u8);
    file(&header.to_string(), vocabulary.as_bytes(), &vec![0.5; pieces.len()], &rows.collect::<Vec<u8>>())
}

fn file(header: &str, vocabulary: &[u8], scales: &[f32], rows: &[u8]) -> Vec<u8> {
    let mut bytes = b"SLVECS\x00\x01".to_vec();
    bytes.extend((header.len() as u32).to_le_bytes());
    bytes.extend(header.as_bytes());
    bytes.extend(vocabulary);
    scales.iter().for_each(|scale| bytes.extend(scale.to_le_bytes()));
    bytes.extend(rows);
    let hash = blake3::hash(&bytes);
    bytes.extend(hash.as_bytes());
    bytes
}

fn read(bytes: Vec<u8>) -> Result<StaticEmbedder, EmbedError> {
    Ok(StaticEmbedder { table: Table::read("toy.vectors", Cow::Owned(bytes))? })
}

fn refused(bytes: Vec<u8>) -> String {
    read(bytes).expect_err("no table").to_string()
}

const PIECES: [&str; 12] = ["the", "cat", "sat", "##s", "s", ".", "un", "##happy", "##hap", "é", "caf", "cafe"];

#[test]
fn a_text_is_the_sum_of_its_pieces_at_length_one() {
    let toy = read(table(&PIECES, 4, |row, at| if row % 4 == at { 10 + row as i8 } else { 0 })).unwrap();
    let mut out = [9.0; 4];
    assert_eq!(toy.embed("The CATS", &mut out), 3);
    let length = (10f32 * 10.0 + 11.0 * 11.0 + 13.0 * 13.0).sqrt();
    let expected = [10.0 / length, 11.0 / length, 0.0, 13.0 / length];
    assert!(out.iter().zip(expected).all(|(out, expected)| (out - expected).abs() < 1e-6), "{out:?}");
    let mut short = [9.0; 2];
    toy.embed("The CATS", &mut short);
    assert!((short[1] / short[0] - 1.1).abs() < 1e-6 && (similarity(&short, &short) - 1.0).abs() < 1e-6);
    let mut long = [9.0; 6];
    toy.embed("The CATS", &mut long);
    assert_eq!((&long[..4], &long[4..]), (&out[..], &[0.0, 0.0][..]));
    for nothing in ["", " \n", "zebra", "日本"] {
        assert_eq!((toy.embed(nothing, &mut out), out), (0, [0.0; 4]), "{nothing:?}");
    }
}

#[test]
fn bad_files_are_told_apart() {
    let good = table(&PIECES, 4, |row, at| (row + at) as i8);
    read(good.clone()).unwrap();
    assert!(refused(b"GGUF and more".to_vec()).contains("does not start with SLVECS"));
    assert!(refused(good[..20].to_vec()).contains("has 20 bytes where 44 were expected"));
    assert!(refused(good[..good.len() - 1].to_vec()).contains("hash does not match"));
    let mut torn = good.clone();
    torn[100] ^= 1;
    assert!(refused(torn).contains("hash does not match"));
    let cases = [
        (r#"{"name":"x","dims":2,"rows":1,"vocabulary_bytes":2}"#, "a\n", 1.0, 1, "bytes where"),
        (r#"{"name":"x","dims":0,"rows":1,"vocabulary_bytes":2}"#, "a\n", 1.0, 0, "0 dimensions"),
        (r#"{"name":"x","dims":1,"rows":1,"vocabulary_bytes":4}"#, "a\nb\n", 1.0, 1, "2 lines for 1 rows"),
        (r#"{"name":"x","dims":1,"rows":1,"vocabulary_bytes":2}"#, "\n\n", 1.0, 1, "2 lines for 1 rows"),
        (r#"{"name":"x","dims":1,"rows":1,"vocabulary_bytes":1}"#, "\n", 1.0, 1, "line 1 of its vocabulary is empty"),
        (r#"{"name":"x","dims":1,"rows":1,"vocabulary_bytes":2}"#, "a\n", f32::NAN, 1, "scale of row 0"),
        (r#"{"name":"x","dims":1,"rows":18446744073709551615,"vocabulary_bytes":2}"#, "a\n", 1.0, 1, "more than any"),
        (r#"{"name":"x","dims":1,"rows":1}"#, "a\n", 1.0, 1, "missing field"),
    ];
    for (header, vocabulary, scale, rows, says) in cases {
        let message = refused(file(header, vocabulary.as_bytes(), &[scale], &vec![1; rows]));
        assert!(message.starts_with("toy.vectors: ") && message.contains(says), "{message} for {says}");
    }
    let header = r#"{"name":"x","dims":1,"rows":2,"vocabulary_bytes":4}"#;
    assert!(refused(file(header, b"a\na\n", &[1.0; 2], &[1; 2])).contains("line 2 of its vocabulary was there before"));
    assert!(refused(file(header, b"a\n\xff\n", &[1.0; 2], &[1; 2])).contains("not UTF-8"));
    let missing = StaticEmbedder::from_file(Path::new("/nowhere/at all.vectors")).unwrap_err();
    assert!(matches!(&missing, EmbedError::Io { file, .. } if file == "/nowhere/at all.vectors"), "{missing}");
}

/// Texts in many scripts, some of them hostile.
const TEXTS: [&str; 16] = [
    "What is the best way to learn Rust?",
    "don't stop-believin' (1981) — C++/C#: x_1 = 3.14e-5; $99.95 @home #tag ~`^|<>",
    "Crème brûlée à la façon de l'École, naïve Ångström, Straße, İstanbul, Œuvre ﬁn ½",
    "e\u{301}cole n\u{303} a\u{0}b c\u{fffd}d soft\u{ad}hyphen zero\u{200b}width \u{feff}mark",
    "東京は日本の首都です。今日は良い天気。中文字符混合English",
    "Привет, мир! Ёлка и йод",
    "안녕하세요 세계",
    "हिन्दी में कुछ शब्द",
    "مرحبا بالعالم، كيف حالك؟",
    "emoji 😀👩‍👩‍👧 and ™ © ° § ¿qué? ¡hola! «mots» „Wort“ …",
    "tab\tline\nreturn\rvertical\u{b}form\u{c}next\u{85}nbsp\u{a0}thin\u{2009}ideographic\u{3000}end\u{1f}x",
    "   leading and trailing   ",
    "",
    "supercalifragilisticexpialidocious antidisestablishmentarianism pneumonoultramicroscopicsilicovolcanoconiosis",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa b",
    "##s ## [CLS] [UNK] don[SEP]t",
];

/// What the `tokenizers` crate makes of a text with the same pieces; pieces of its unknown word are `None`.
fn reference(vocabulary: &[&str], text: &str) -> Vec<Option<u32>> {
    let pieces = vocabulary.iter().enumerate().map(|(at, piece)| ((*piece).to_owned(), at as u32));
    let unknown = vocabulary.len() as u32;
    let pieces: HashMap<String, u32> = pieces.chain([("[UNK]".to_owned(), unknown)]).collect();
    let model = serde_json::json!({
        "type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##", "max_input_chars_per_word": 100,
        "vocab": pieces
    });
    let model: Reference = serde_json::from_str(&model.to_string()).unwrap();
    let mut whole = tokenizers::Tokenizer::new(model);
    whole.with_normalizer(Some(BertNormalizer::default())).unwrap();
    whole.with_pre_tokenizer(Some(BertPreTokenizer));
    let tokens = whole.encode(text, false).unwrap();
    tokens.get_ids().iter().map(|id| Some(*id).filter(|id| *id != unknown)).collect()
}

#[test]
fn pieces_are_those_of_the_tokenizers_crate() {
    let bundled = StaticEmbedder::bundled().unwrap();
    let vocabulary: Vec<String> = bundled.table.words().to_vec();
    let vocabulary: Vec<&str> = vocabulary.iter().map(String::as_str).collect();
    let words = WordPiece::new(vocabulary.iter().copied()).unwrap();
    let whole = TEXTS.join(" ");
    let long = "é".repeat(5000) + &"ab cd ".repeat(2000);
    for text in TEXTS.into_iter().chain([whole.as_str(), &long]) {
        let mut found = Vec::new();
        words.pieces(text, usize::MAX, |piece| found.push(piece));
        let mut expected = reference(&vocabulary, text);
        if text == long {
            // A word beyond a hundred characters is unknown once, here once for each part of it that is looked at.
            assert!(found[0].is_none() && expected[0].is_none());
            let apart = found.iter().take_while(|piece| piece.is_none()).count();
            (found, expected) = (found.split_off(apart), expected.split_off(1));
        }
        assert_eq!(found, expected, "{text:?}");
    }
}

#[test]
fn the_bundled_table_knows_paraphrases_from_strangers() {
    let bundled = StaticEmbedder::bundled().unwrap();
    assert_eq!((bundled.dims(), bundled.name(), bundled.version().len()), (256, "sluice-embed-v0", 16));
    let vector = |text: &str| {
        let mut out = vec![0.0; bundled.dims()];
        assert!(bundled.embed(text, &mut out) > 0);
        assert!((similarity(&out, &out) - 1.0).abs() < 1e-5, "length of {text:?}");
        out
    };
    let triples = [
        ("How do I reset my password?", "I forgot my login code and need a new one", "What is the tallest mountain?"),
        ("What's the weather like in Paris?", "Will it rain in the French capital today?", "Sort these numbers"),
        ("Write a poem about the sea", "Compose some verses on the ocean", "My card was charged twice"),
        ("Translate this to German", "How would you say that in Deutsch?", "List the planets by size"),
        ("convert 5 miles to km", "how many kilometres are five miles", "cancel my subscription"),
    ];
    for (text, paraphrase, stranger) in triples {
        let (text_vector, near, far) = (vector(text), vector(paraphrase), vector(stranger));
        let (near, far) = (similarity(&text_vector, &near), similarity(&text_vector, &far));
        assert!(near > far + 0.1, "{text}: {near} beside {far}");
    }
}

#[test]
fn a_huge_text_is_a_sum_like_any_other() {
    let bundled = StaticEmbedder::bundled().unwrap();
    let (mut once, mut often) = (vec![0.0; 256], vec![0.0; 256]);
    let text = "The cat sat on the mat. Übrigens 東京! ";
    let count = bundled.embed(text, &mut once);
    assert_eq!(bundled.embed(&text.repeat(20_000), &mut often), 20_000 * count);
    assert!(similarity(&once, &often) > 0.9999);
}
