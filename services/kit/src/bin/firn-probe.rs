//! `firn-probe URL`: ends with 0 if a GET of the URL is answered with 200. It is the health check of images that hold
//! neither a shell nor another client.

use std::io::{Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::process::ExitCode;
use std::time::Duration;

/// Longest wait for the connection, and then for each part of the answer.
const PATIENCE: Duration = Duration::from_secs(3);

fn main() -> ExitCode {
    let Some(url) = std::env::args().nth(1) else {
        eprintln!("usage: firn-probe http://HOST:PORT/PATH");
        return ExitCode::from(2);
    };
    match probe(&url) {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("{url}: {message}");
            ExitCode::FAILURE
        }
    }
}

fn probe(url: &str) -> Result<(), String> {
    let rest = url.strip_prefix("http://").ok_or("the URL must begin with http://")?;
    let (host, path) = rest.split_once('/').ok_or("the URL has no path")?;
    let address = host.to_socket_addrs().map_err(text)?.next().ok_or("the host has no address")?;
    let mut stream = TcpStream::connect_timeout(&address, PATIENCE).map_err(text)?;
    stream.set_read_timeout(Some(PATIENCE)).map_err(text)?;
    stream.set_write_timeout(Some(PATIENCE)).map_err(text)?;
    write!(stream, "GET /{path} HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n").map_err(text)?;
    let mut status = [0; 12];
    stream.read_exact(&mut status).map_err(text)?;
    match status.strip_prefix(b"HTTP/1.1 ") {
        Some(b"200") => Ok(()),
        _ => Err(format!("answered {}", String::from_utf8_lossy(&status))),
    }
}

fn text(error: std::io::Error) -> String {
    error.to_string()
}
