//! Which path the target of a request means to a server.

#[cfg(test)]
mod tests;

pub use crate::engines::Route;

/// The path that the target of a request means to the server, which takes the fragment and the query off it and decodes
/// the rest: `%69` and `%u0069`, bytes above 127 as they are. It treats slashes at the end, or two in a row, as others than
/// none or one. Of a whole address what stands behind the host counts.
pub fn path(target: &[u8]) -> String {
    let path = &target[..target.iter().position(|byte| matches!(byte, b'?' | b'#')).unwrap_or(target.len())];
    let address = path.strip_prefix(b"http://").or_else(|| path.strip_prefix(b"https://"));
    let start = |address: &[u8]| address.iter().position(|byte| *byte == b'/');
    let path = address.map_or(path, |address| start(address).map_or(b"/", |start| &address[start..]));
    String::from_utf8_lossy(&decoded(path)).into_owned()
}

fn decoded(path: &[u8]) -> Vec<u8> {
    let number = |digits: &[u8]| u32::from_str_radix(str::from_utf8(digits).ok()?, 16).ok();
    let digits = |at: usize, count: usize| {
        let digits = path.get(at..at + count)?;
        digits.iter().all(u8::is_ascii_hexdigit).then(|| number(digits))?
    };
    let mut bytes = Vec::with_capacity(path.len());
    let mut at = 0;
    while let Some(&byte) = path.get(at) {
        let wide = || digits(at + 2, 4).and_then(char::from_u32).filter(|_| path.get(at + 1) == Some(&b'u'));
        let byte_of = || digits(at + 1, 2).and_then(|n| u8::try_from(n).ok());
        if byte != b'%' {
            bytes.push(byte);
            at += 1;
        } else if let Some(byte) = byte_of() {
            bytes.push(byte);
            at += 3;
        } else if let Some(wide) = wide() {
            bytes.extend_from_slice(wide.encode_utf8(&mut [0; 4]).as_bytes());
            at += 6;
        } else {
            bytes.push(byte);
            at += 1;
        }
    }
    bytes
}
