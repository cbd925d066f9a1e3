//! Bytes of tokens to text as they come: a character is passed on when it is complete.

/// Holds the bytes of an incomplete character.
#[derive(Debug, Default, Clone)]
pub struct TextStream {
    pending: Vec<u8>,
}

impl TextStream {
    /// Takes the bytes of one more token and returns the text that is complete; bytes that can't be UTF-8 become U+FFFD.
    pub fn push(&mut self, bytes: &[u8]) -> String {
        self.pending.extend_from_slice(bytes);
        let mut text = String::new();
        let mut from = 0;
        loop {
            match std::str::from_utf8(&self.pending[from..]) {
                Ok(rest) => {
                    text.push_str(rest);
                    from = self.pending.len();
                    break;
                }
                Err(error) => {
                    let end = from + error.valid_up_to();
                    text.push_str(&String::from_utf8_lossy(&self.pending[from..end]));
                    let Some(length) = error.error_len() else {
                        from = end;
                        break;
                    };
                    text.push(char::REPLACEMENT_CHARACTER);
                    from = end + length;
                }
            }
        }
        self.pending.drain(..from);
        text
    }

    /// What is left when no more tokens come: U+FFFD for an incomplete character, else nothing.
    pub fn finish(&mut self) -> String {
        let text = String::from_utf8_lossy(&self.pending).into_owned();
        self.pending.clear();
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn characters_come_whole_and_faults_become_replacements() {
        let text = "aé日😀 z";
        for size in 1..5 {
            let mut stream = TextStream::default();
            let mut got = String::new();
            for part in text.as_bytes().chunks(size) {
                got.push_str(&stream.push(part));
            }
            assert_eq!(got, text);
            assert_eq!(stream.finish(), "");
        }
        let mut stream = TextStream::default();
        assert_eq!(stream.push(b"a\xffb\xe6\x97"), "a\u{fffd}b");
        assert_eq!(stream.push(b"c"), "\u{fffd}c");
        assert_eq!(stream.push(b"\xf0\x9f"), "");
        assert_eq!(stream.finish(), "\u{fffd}");
    }
}
