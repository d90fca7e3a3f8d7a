//! Bytes of tokens in, whole characters out: a token may end in the middle of one.

/// Joins the bytes of tokens into text, piece by piece.
///
/// Every piece is whole UTF-8. Bytes that can still become a character wait for the next push; bytes that no longer can
/// become U+FFFD, one for each maximal broken sequence, as `String::from_utf8_lossy` does it. The pieces together, with that
/// of [`Utf8Stream::flush`], are what `from_utf8_lossy` makes of all bytes together.
#[derive(Clone, Debug, Default)]
pub struct Utf8Stream {
    /// The beginning of a character, 0 to 3 bytes.
    waiting: Vec<u8>,
}

impl Utf8Stream {
    /// An empty stream.
    pub fn new() -> Utf8Stream {
        Utf8Stream::default()
    }

    /// Adds bytes and returns the text that is whole now, possibly none.
    pub fn push(&mut self, bytes: &[u8]) -> String {
        self.waiting.extend_from_slice(bytes);
        let mut text = String::new();
        let mut rest = &self.waiting[..];
        loop {
            match std::str::from_utf8(rest) {
                Ok(whole) => {
                    text.push_str(whole);
                    rest = &[];
                    break;
                }
                Err(e) => {
                    let (whole, broken) = rest.split_at(e.valid_up_to());
                    text.push_str(&String::from_utf8_lossy(whole));
                    rest = broken;
                    // Without a length the sequence is not wrong, only cut short by the end of the bytes.
                    let Some(len) = e.error_len() else { break };
                    text.push(char::REPLACEMENT_CHARACTER);
                    rest = &rest[len..];
                }
            }
        }
        self.waiting = rest.to_vec();
        text
    }

    /// Ends the text: U+FFFD if a character was begun and not finished, else nothing. The stream is empty afterwards.
    pub fn flush(&mut self) -> String {
        let text = String::from_utf8_lossy(&self.waiting).into_owned();
        self.waiting.clear();
        text
    }

    /// Whether a character is begun and not finished.
    pub fn is_waiting(&self) -> bool {
        !self.waiting.is_empty()
    }
}
