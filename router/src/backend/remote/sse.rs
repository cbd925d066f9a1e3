//! Server-sent events, read from bytes as they come (WHATWG HTML, section 9.2.6), with bounded memory: a line or an event of
//! more than [`MAX_EVENT_BYTES`] is an error, whatever follows. Only `data` is kept; names, ids and comments are not used by
//! the chat protocol. It knows nothing of what the data means.

/// Most bytes of one line, and of the data of one event: 1 MiB.
pub(super) const MAX_EVENT_BYTES: usize = 1 << 20;

/// What is wrong with a stream of events.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum SseError {
    #[error("an event of more than {MAX_EVENT_BYTES} bytes")]
    TooLong,
    #[error("an event that is not UTF-8")]
    NotUtf8,
}

/// Reads events.
#[derive(Debug, Default)]
pub(super) struct SseParser {
    /// The line under way.
    line: Vec<u8>,
    /// The data of the event under way.
    data: Option<Vec<u8>>,
    /// Whether the last byte was a carriage return: a line feed after it ends no second line.
    after_return: bool,
    /// Whether the byte-order mark has been looked for.
    begun: bool,
}

impl SseParser {
    /// Takes the next bytes and adds the data of each event that they complete to `events`.
    pub(super) fn push(&mut self, mut bytes: &[u8], events: &mut Vec<String>) -> Result<(), SseError> {
        while let Some(end) = bytes.iter().position(|byte| matches!(byte, b'\n' | b'\r')) {
            let (part, rest) = bytes.split_at(end);
            let feed_of_a_pair = self.after_return && end == 0 && rest.first() == Some(&b'\n');
            self.after_return = rest.first() == Some(&b'\r');
            bytes = rest.get(1..).unwrap_or_default();
            if feed_of_a_pair {
                continue;
            }
            self.extend_line(part)?;
            self.end_line(events)?;
        }
        if !bytes.is_empty() {
            self.after_return = false;
        }
        self.extend_line(bytes)
    }

    /// The data of an event whose closing blank line never came although its own lines are complete. By the standard it is
    /// not an event; the caller accepts an end marker from it and nothing else.
    pub(super) fn unfinished(self) -> Option<String> {
        self.data.filter(|_| self.line.is_empty()).and_then(|data| String::from_utf8(data).ok())
    }

    fn extend_line(&mut self, part: &[u8]) -> Result<(), SseError> {
        if self.line.len() + part.len() > MAX_EVENT_BYTES {
            return Err(SseError::TooLong);
        }
        self.line.extend_from_slice(part);
        Ok(())
    }

    fn end_line(&mut self, events: &mut Vec<String>) -> Result<(), SseError> {
        let line = std::mem::take(&mut self.line);
        let mut line = line.as_slice();
        if !self.begun {
            self.begun = true;
            line = line.strip_prefix(b"\xef\xbb\xbf").unwrap_or(line);
        }
        if line.is_empty() {
            if let Some(data) = self.data.take() {
                events.push(String::from_utf8(data).map_err(|_| SseError::NotUtf8)?);
            }
            return Ok(());
        }
        let Some(value) = line.strip_prefix(b"data").filter(|rest| rest.first().is_none_or(|byte| *byte == b':'))
        else {
            return Ok(());
        };
        let value = value.strip_prefix(b":").unwrap_or(value);
        let value = value.strip_prefix(b" ").unwrap_or(value);
        match &mut self.data {
            None => self.data = Some(value.to_vec()),
            Some(data) if data.len() + value.len() >= MAX_EVENT_BYTES => return Err(SseError::TooLong),
            Some(data) => {
                data.push(b'\n');
                data.extend_from_slice(value);
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn parse(pieces: &[&[u8]]) -> Result<Vec<String>, SseError> {
        let (mut parser, mut events) = (SseParser::default(), Vec::new());
        for piece in pieces {
            parser.push(piece, &mut events)?;
        }
        Ok(events)
    }

    #[test]
    fn events_are_read_as_the_standard_says() {
        let check = |text: &str, expected: &[&str]| {
            assert_eq!(parse(&[text.as_bytes()]).unwrap(), expected, "{text:?}");
            let bytes: Vec<&[u8]> = text.as_bytes().chunks(1).collect();
            assert_eq!(parse(&bytes).unwrap(), expected, "byte by byte: {text:?}");
        };
        check("data: a\n\n", &["a"]);
        check("data:a\n\ndata:  b\n\n", &["a", " b"]);
        check("\u{feff}data: a\r\n\r\ndata: b\r\rdata: c\n\n", &["a", "b", "c"]);
        check("data: a\ndata: b\n\n", &["a\nb"]);
        check(": ping\n\nevent: x\nid: 1\ndata: a\nretry: 3\n\n", &["a"]);
        check("data\n\n", &[""]);
        check("database: a\n\n", &[]);
        check("\n\n\n", &[]);
        check("data: a\n", &[]);
        check("data: ä€😀\n\n", &["ä€😀"]);
    }

    #[test]
    fn memory_is_bounded() {
        let block = [b'x'; 1 << 16];
        let mut parser = SseParser::default();
        let mut taken = 0;
        let error = loop {
            match parser.push(&block, &mut Vec::new()) {
                Ok(()) => taken += block.len(),
                Err(error) => break error,
            }
        };
        assert_eq!((error, taken), (SseError::TooLong, MAX_EVENT_BYTES));
        let line = [b"data: ".as_slice(), &[b'x'; 1000], b"\n"].concat();
        let mut parser = SseParser::default();
        assert!((0..2000).any(|_| parser.push(&line, &mut Vec::new()) == Err(SseError::TooLong)));
        assert_eq!(parse(&[b"data: \xff\n\n"]), Err(SseError::NotUtf8));
    }

    #[test]
    fn an_unfinished_event_is_told_apart() {
        let rest = |text: &str| {
            let mut parser = SseParser::default();
            parser.push(text.as_bytes(), &mut Vec::new()).unwrap();
            parser.unfinished()
        };
        assert_eq!(rest("data: [DONE]\n"), Some("[DONE]".to_owned()));
        assert_eq!(rest("data: [DONE]"), None);
        assert_eq!(rest("data: [DONE]\n\n"), None);
    }

    proptest! {
        /// However the bytes are cut into pieces, the events are the same.
        #[test]
        fn pieces_do_not_matter(text in "(data: ?[a-z]{0,3}|:c|x)?(\n|\r|\r\n){1,2}(data:b\n\n)?", cut in 0_usize..40) {
            let bytes = text.as_bytes();
            let cut = cut.min(bytes.len());
            prop_assert_eq!(parse(&[bytes]).unwrap(), parse(&[&bytes[..cut], &bytes[cut..]]).unwrap());
        }
    }
}
