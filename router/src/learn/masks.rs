//! What looks personal or secret is masked before recorded text becomes something to train on: e-mail addresses, phone and
//! card numbers, IBANs, IP addresses, keys and tokens. Names and postal addresses have no shape and stay: whoever lets text be
//! recorded must know that. In doubt a number is masked: a model loses little by it.

use regex::Regex;
use std::collections::BTreeMap;
use std::net::Ipv6Addr;
use std::ops::Range;

/// Digits of card numbers (ISO/IEC 7812) and of phone numbers (E.164).
const CARD_DIGITS: Range<usize> = 13..20;
const PHONE_DIGITS: Range<usize> = 8..16;

/// Letters and digits of an IBAN (ISO 13616).
const IBAN_LENGTH: Range<usize> = 15..35;

/// Shortest run of letters and digits that is no word of any language.
const TOKEN_LENGTH: usize = 32;

/// One shape that is looked for; the part that is masked is that of the pattern's only group, or all.
struct Shape {
    mask: &'static str,
    pattern: Regex,
    /// The part of what was found that is what it looks like.
    holds: fn(&str) -> Option<Range<usize>>,
}

/// Finds and masks.
pub struct Masker(Vec<Shape>);

/// What was masked, by mask.
pub type Masked = BTreeMap<&'static str, usize>;

fn whole(text: &str) -> Option<Range<usize>> {
    Some(0..text.len())
}

impl Masker {
    /// Knows all shapes.
    ///
    /// # Errors
    /// Not expected: the patterns are fixed.
    pub fn new() -> Result<Self, regex::Error> {
        type Row = (&'static str, &'static str, fn(&str) -> Option<Range<usize>>);
        let shapes: [Row; 14] = [
            ("<KEY>", r"(?s)-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|\z)", whole),
            ("<KEY>", r"\w://([^/\s:@]*:[^/\s@]+)@", whole),
            // Shapes that issuers give their keys, JSON web tokens, and what follows `Bearer`.
            (
                "<KEY>",
                r"\b(?:(?:sk|pk|rk|gh[a-z]|github_pat|glpat|xox[a-z]|hf|npm|AIza|ya29)[-_.]?[A-Za-z0-9_.\-]{16,300}|A[A-Z]IA[A-Z0-9]{16})",
                has_digit,
            ),
            ("<KEY>", r"\beyJ[A-Za-z0-9_\-]{6,}\.[A-Za-z0-9_\-]+(?:\.[A-Za-z0-9_\-]*)?", whole),
            ("<KEY>", r"(?i)\bbearer\s+([A-Za-z0-9._~+/\-]{12,}=*)", whole),
            (
                "<KEY>",
                r#"(?i)\b(?:pass(?:word|wd|phrase|code)?|pwd|pin|secret|token|credentials?|(?:api|access|secret|private)[ _\-]?key)\b["']?\s*[:=]\s*["']?([^\s"',;<]{4,})"#,
                whole,
            ),
            ("<KEY>", r#"(?i)\b(?:pass(?:word|wd|phrase|code)|pwd)\s+is\s+["']?([^\s"',;<]{4,})"#, whole),
            ("<EMAIL>", r"(?i)[\p{L}\p{N}._%+\-]+@[\p{L}\p{N}](?:[\p{L}\p{N}.\-]*[\p{L}\p{N}])?\.[\p{L}]{2,}", whole),
            ("<IBAN>", r"(?i)\b[A-Z]{2}\d{2}(?:[ \-]?[A-Z0-9]){11,30}", iban),
            ("<CARD>", r"\b\d(?:[ \-.]?\d){12,40}\b", card),
            ("<IP>", r"\b(?:(?:25[0-5]|2[0-4]\d|1?\d?\d)\.){3}(?:25[0-5]|2[0-4]\d|1?\d?\d)\b", whole),
            (
                "<IP>",
                r"(?i)(?:\b[0-9a-f]{1,4}:|::)(?:[0-9a-f]{0,4}:){0,7}(?:(?:\d{1,3}\.){3}\d{1,3}|[0-9a-f]{0,4})",
                ipv6,
            ),
            (
                "<PHONE>",
                r"(?i)(?:\+|\b00)[ ]?\(?\d(?:[ ().\-/]{0,2}\d){6,14}\b|\(\d{2,5}\)[ .\-/]?\d(?:[ .\-/]?\d){5,10}\b|\b\d{2,5}(?:[ .\-/]\d{2,5}){2,4}\b|\b0\d{8,11}\b|\b(?:phone|tel|telephone|mobile|cell|fax|whatsapp|call)\b[^\d\n]{0,14}\d(?:[ .\-/]?\d){6,14}\b",
                phone,
            ),
            ("<KEY>", r"[A-Za-z0-9_\-+/]{32,400}={0,2}", token),
        ];
        let shape = |(mask, pattern, holds): Row| Ok(Shape { mask, pattern: Regex::new(pattern)?, holds });
        Ok(Self(shapes.into_iter().map(shape).collect::<Result<_, regex::Error>>()?))
    }

    /// The text with masks in the place of what was found, which is counted in `masked`.
    pub fn mask(&self, text: &str, masked: &mut Masked) -> String {
        let mut text = text.to_owned();
        for Shape { mask, pattern, holds } in &self.0 {
            let (mut out, mut from, mut copied) = (String::with_capacity(text.len()), 0, 0);
            while let Some(found) = pattern.captures_at(&text, from) {
                let all = found.get_match();
                let part = found.get(1).unwrap_or(all);
                let Some(held) = holds(part.as_str()) else {
                    // What was looked for may begin within: after the next separator.
                    let next = all.as_str().find(|letter: char| !letter.is_alphanumeric()).filter(|at| *at > 0);
                    from = next.map_or(all.end(), |next| all.start() + next);
                    continue;
                };
                out.push_str(text.get(copied..part.start() + held.start).unwrap_or_default());
                out.push_str(mask);
                copied = part.start() + held.end;
                from = copied;
                *masked.entry(mask).or_default() += 1;
            }
            out.push_str(text.get(copied..).unwrap_or_default());
            text = out;
        }
        text
    }
}

fn has_digit(text: &str) -> Option<Range<usize>> {
    whole(text).filter(|_| text.bytes().any(|byte| byte.is_ascii_digit()))
}

/// A long run of letters and digits, both of them, and no path of words.
fn token(text: &str) -> Option<Range<usize>> {
    let count = |is: fn(&u8) -> bool| text.bytes().filter(is).count();
    let (digits, letters) = (count(u8::is_ascii_digit), count(u8::is_ascii_alphabetic));
    let random = digits >= 4 && letters >= 4 && digits + letters >= TOKEN_LENGTH - 6;
    whole(text).filter(|_| random)
}

/// Groups of digits between separators: where each begins and ends.
fn groups(text: &str) -> Vec<Range<usize>> {
    let mut groups: Vec<Range<usize>> = Vec::new();
    for (at, character) in text.char_indices().filter(|(_, character)| character.is_ascii_digit()) {
        match groups.last_mut() {
            Some(last) if last.end == at => last.end += character.len_utf8(),
            _ => groups.push(at..at + 1),
        }
    }
    groups
}

/// The first groups that are a card number together, by its check digit (Luhn).
fn card(text: &str) -> Option<Range<usize>> {
    let groups = groups(text);
    for (first, from) in groups.iter().enumerate() {
        for to in groups.iter().skip(first).rev() {
            let found = from.start..to.end;
            let digits: Vec<u32> = text.get(found.clone())?.chars().filter_map(|c| c.to_digit(10)).collect();
            if CARD_DIGITS.contains(&digits.len()) && luhn(&digits) {
                return Some(found);
            }
        }
    }
    None
}

fn luhn(digits: &[u32]) -> bool {
    let weighed = |(place, digit): (usize, &u32)| match (place % 2, digit * 2) {
        (0, _) => *digit,
        (_, twice) if twice > 9 => twice - 9,
        (_, twice) => twice,
    };
    digits.iter().rev().enumerate().map(weighed).sum::<u32>() % 10 == 0 && digits.iter().any(|digit| *digit != 0)
}

/// The longest beginning that is an IBAN by its check digits (ISO 7064, mod 97-10) and ends where a word does.
fn iban(text: &str) -> Option<Range<usize>> {
    let letters: Vec<(usize, u32)> =
        text.char_indices().filter_map(|(at, letter)| Some((at, letter.to_digit(36)?))).collect();
    for length in IBAN_LENGTH.rev() {
        let Some((last, _)) = letters.get(length.checked_sub(1)?) else { continue };
        let end = last + 1;
        let ends = text.get(end..)?.chars().next().is_none_or(|next| !next.is_ascii_alphanumeric());
        let (country, account) = letters.get(..length)?.split_at(4);
        let remainder = account
            .iter()
            .chain(country)
            .fold(0, |sum, (_, value)| if *value < 10 { (sum * 10 + value) % 97 } else { (sum * 100 + value) % 97 });
        if ends && remainder == 1 {
            return Some(0..end);
        }
    }
    None
}

/// An address with a digit in it: `std::net` is none.
fn ipv6(text: &str) -> Option<Range<usize>> {
    let trimmed = text.strip_suffix(':').filter(|rest| !rest.ends_with(':')).unwrap_or(text);
    let address = trimmed.parse::<Ipv6Addr>().is_ok() && trimmed.len() > 3;
    has_digit(trimmed).filter(|_| address)
}

/// As many digits as phone numbers have, and no day such as 2026-11-27.
fn phone(text: &str) -> Option<Range<usize>> {
    let groups = groups(text);
    let digits: usize = groups.iter().map(ExactSizeIterator::len).sum();
    let (first, last) = (groups.first()?, groups.last()?);
    let sizes = (groups.first().map(ExactSizeIterator::len), groups.get(1).map(ExactSizeIterator::len));
    if matches!(
        (sizes, groups.get(2).map(ExactSizeIterator::len)),
        ((Some(4), Some(2)), Some(2)) | ((Some(2), Some(2)), Some(4))
    ) {
        return None;
    }
    let sure = text.starts_with(['+', '(']) || text.starts_with(|c: char| c.is_alphabetic());
    let start = if text.starts_with(['+', '(']) { 0 } else { first.start };
    let found = start..last.end;
    (PHONE_DIGITS.contains(&digits) || (sure && digits == 7)).then_some(found).filter(|_| sure || digits > 8)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &str, expected: &str) {
        let mut masked = Masked::new();
        assert_eq!(Masker::new().unwrap().mask(text, &mut masked), expected);
        assert_eq!(masked.values().sum::<usize>(), expected.matches('<').count(), "{text}");
    }

    #[test]
    fn what_identifies_somebody_is_masked() {
        check("Write to ada.l+x@mail.example.co.uk, please.", "Write to <EMAIL>, please.");
        check("jürgen@bücher.example", "<EMAIL>");
        check("Call +49 (0)30 1234-5678 or 0049 30 12345678.", "Call <PHONE> or <PHONE>.");
        check("(555) 123-4567, 555-123-4567, 03012345678", "<PHONE>, <PHONE>, <PHONE>");
        check("phone: 5551234567!", "phone: <PHONE>!");
        check("card 4111 1111 1111 1111 12/27", "card <CARD> 12/27");
        check("no. 12 4012888888881881", "no. 12 <CARD>");
        check("378282246310005", "<CARD>");
        check("IBAN DE89 3704 0044 0532 0130 00 and more", "IBAN <IBAN> and more");
        check("gb82west12345698765432", "<IBAN>");
        check("from 192.168.0.12:80 and [2001:db8::1]", "from <IP>:80 and [<IP>]");
        check("fe80::1ff:fe23:4567:890a is up", "<IP> is up");
    }

    #[test]
    fn keys_and_passwords_are_masked() {
        check("use sk-proj-abcDEF1234567890abcd now", "use <KEY> now");
        check("AKIAIOSFODNN7EXAMPLE ghp_16C7e42F292c6912E7710c838347Ae178B4a", "<KEY> <KEY>");
        check("eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.dozjgNryP4J3jVm", "<KEY>");
        check("Authorization: Bearer abcdef.ghijkl-123456", "Authorization: Bearer <KEY>");
        check("my password is hunter2, ok?", "my password is <KEY>, ok?");
        check("api_key = \"s3cr3t!\"", "api_key = \"<KEY>\"");
        check("postgres://ada:pw@db.example/x", "postgres://<KEY>@db.example/x");
        check("-----BEGIN RSA PRIVATE KEY-----\nMIIE\n-----END RSA PRIVATE KEY-----", "<KEY>");
        check("9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08", "<KEY>");
    }

    #[test]
    fn what_identifies_nobody_stays() {
        let plain = [
            "On 2026-11-27 12:30:45 it was 1234567 + 2771, or 3.1415926.",
            "use std::net::IpAddr; a::b::c",
            "4111111111111112 is no card",
            "Is version 2.10.3 newer than 1.9? The token is",
            "local-worker/src/scorer/features_and_more/learner.rs",
            "sk-learn and hf are libraries; pass it on",
            "Donaudampfschifffahrtsgesellschaftskapitaen",
            "DE00 is no account and 12345 no secret",
        ];
        plain.into_iter().for_each(|text| check(text, text));
    }

    #[test]
    fn masking_again_changes_nothing_and_odd_texts_are_taken() {
        let masker = Masker::new().unwrap();
        for text in ["", "<EMAIL> <KEY>", "a@b", "\u{0}\u{202e}+", "é: 0ó1 ::: 1::", "password: <KEY>"] {
            let once = masker.mask(text, &mut Masked::new());
            assert_eq!(masker.mask(&once, &mut Masked::new()), once, "{text}");
        }
    }
}
