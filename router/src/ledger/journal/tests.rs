use super::*;
use crate::ledger::stored::{Record, StoredFeedback};

fn record(entry: impl Into<String>) -> Record {
    Record::Feedback(StoredFeedback { entry: entry.into(), source: "user".to_owned(), value: 0.5, at_ms: 1 })
}

fn open(folder: &Path) -> (Journal, Vec<PathBuf>) {
    let mut torn = Vec::new();
    let journal = Journal::open(folder, LedgerOptions::default(), &Position::default(), &mut torn).unwrap();
    (journal, torn)
}

/// The entries of all records, and where they end.
fn read_all(journal: &Journal) -> (Vec<String>, Position) {
    let (mut names, mut position) = (Vec::new(), Position::default());
    loop {
        let (records, to) = journal.read(position, 2).unwrap();
        if records.is_empty() && to == position {
            return (names, position);
        }
        names.extend(records.into_iter().map(|record| match record {
            Record::Feedback(feedback) => feedback.entry,
            other => panic!("{other:?}"),
        }));
        position = to;
    }
}

/// The bytes of a segment with three records, and where each one starts.
fn three_records() -> (Vec<u8>, [usize; 3]) {
    let folder = tempfile::tempdir().unwrap();
    let (journal, _) = open(folder.path());
    let starts = ["a", "b", "c"].map(|name| {
        let start = journal.end().offset;
        journal.append(&record(name)).unwrap();
        start as usize
    });
    (std::fs::read(segment_path(folder.path(), 1)).unwrap(), starts)
}

#[test]
fn a_torn_end_is_set_aside_at_every_byte() {
    let (bytes, [_, _, last]) = three_records();
    for end in last..bytes.len() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(segment_path(folder.path(), 1), &bytes[..end]).unwrap();
        let (journal, torn) = open(folder.path());
        let set_aside: Vec<Vec<u8>> = torn.iter().map(|path| std::fs::read(path).unwrap()).collect();
        let expected = if end > last { vec![bytes[last..end].to_vec()] } else { Vec::new() };
        assert_eq!(set_aside, expected, "cut at {end}");
        journal.append(&record("d")).unwrap();
        assert_eq!(read_all(&journal), (vec!["a".into(), "b".into(), "d".into()], journal.end()), "cut at {end}");
    }
}

#[test]
fn a_flipped_byte_costs_one_record_wherever_it_is() {
    let (bytes, [_, middle, last]) = three_records();
    for at in middle..last - 1 {
        let folder = tempfile::tempdir().unwrap();
        let mut damaged = bytes.clone();
        damaged[at] ^= 0x80;
        std::fs::write(segment_path(folder.path(), 1), &damaged).unwrap();
        let (journal, torn) = open(folder.path());
        assert_eq!(torn.len(), 1, "flipped at {at}");
        assert_eq!(std::fs::read(&torn[0]).unwrap(), &damaged[middle..last]);
        assert_eq!(read_all(&journal), (vec!["a".into(), "c".into()], journal.end()), "flipped at {at}");
    }
}

#[test]
fn damage_while_running_is_passed_over_too() {
    let folder = tempfile::tempdir().unwrap();
    let (journal, _) = open(folder.path());
    journal.append(&record("a")).unwrap();
    let path = segment_path(folder.path(), journal.end().segment);
    let middle = journal.end().offset;
    journal.append(&record("b")).unwrap();
    journal.append(&record("c")).unwrap();
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[middle as usize] ^= 1;
    std::fs::write(&path, &bytes).unwrap();
    assert_eq!(read_all(&journal), (vec!["a".into(), "c".into()], journal.end()));
    assert!(aside_path(&path, middle).exists());
}

#[test]
fn a_record_larger_than_a_batch_is_read() {
    let folder = tempfile::tempdir().unwrap();
    let (journal, _) = open(folder.path());
    let large = "x".repeat(BATCH_BYTES as usize + 10);
    for name in ["a", large.as_str(), "c"] {
        journal.append(&record(name)).unwrap();
    }
    assert_eq!(read_all(&journal), (vec!["a".into(), large, "c".into()], journal.end()));
}

#[test]
fn a_segment_cut_short_while_running_is_an_error_not_an_end() {
    let folder = tempfile::tempdir().unwrap();
    let (journal, _) = open(folder.path());
    journal.append(&record("a")).unwrap();
    let path = segment_path(folder.path(), journal.end().segment);
    OpenOptions::new().write(true).open(&path).unwrap().set_len(5).unwrap();
    let error = journal.read(Position::default(), 2).unwrap_err();
    assert!(error.to_string().contains("journal-0000000001.log"), "{error}");
}
