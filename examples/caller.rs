//! A caller with a cached token: one request for all tasks, renewed before it expires, with
//! retries.
//!
//! ```console
//! $ CLIENT_ID=billing CLIENT_SECRET=jcs_... cargo run --example caller http://127.0.0.1:8000/orders
//! 200 hello billing
//! ```

use std::{env, error::Error, hash::BuildHasher, time::Duration};

use http::{Request, Uri, header};
use http_body_util::{BodyExt, Empty};
use hyper_util::rt::TokioIo;
use jeton::proto::token::{TokenRequest, token_service_client::TokenServiceClient};
use tokio::{
    net::TcpStream,
    sync::Mutex,
    time::{Instant, sleep_until},
};
use tonic::{Code, Status, transport::Channel};

/// The access token of a client, for any number of tasks.
struct Tokens {
    service: TokenServiceClient<Channel>,
    request: TokenRequest,
    cached: Mutex<Option<Cached>>,
}

struct Cached {
    token: String,
    renew_at: Instant,
    expires_at: Instant,
}

impl Tokens {
    async fn get(&self) -> Result<String, Status> {
        // A task that waits here gets the token of the one that renews it.
        let mut cached = self.cached.lock().await;
        let now = Instant::now();
        if let Some(valid) = &*cached
            && now < valid.renew_at
        {
            return Ok(valid.token.clone());
        }
        match (self.renew(now).await, &*cached) {
            (Ok(renewed), _) => Ok(cached.insert(renewed).token.clone()),
            // While the old token is valid, a failure to renew it has no effect.
            (Err(_), Some(valid)) if now < valid.expires_at => Ok(valid.token.clone()),
            (Err(error), _) => Err(error),
        }
    }

    async fn renew(&self, now: Instant) -> Result<Cached, Status> {
        let mut pause = Duration::from_millis(100);
        let answer = loop {
            // Every call of the service may be repeated: a lost reply does no harm.
            match self.service.clone().token(self.request.clone()).await {
                Err(error) if error.code() == Code::Unavailable && pause.as_secs() < 2 => {
                    sleep_until(Instant::now() + pause).await;
                    pause *= 2;
                }
                outcome => break outcome?.into_inner(),
            }
        };
        let lifetime = Duration::from_secs(u64::try_from(answer.expires_in).unwrap_or(0));
        // With jitter, so that processes that started together do not renew together.
        let jitter = (std::hash::RandomState::new().hash_one(0) % 100) as f64 / 1e3;
        Ok(Cached {
            token: answer.access_token,
            renew_at: now + lifetime.mul_f64(0.7 + jitter),
            expires_at: now + lifetime.mul_f64(0.95),
        })
    }
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let jeton = env::var("JETON_ADDRESS").unwrap_or_else(|_| "127.0.0.1:50051".to_owned());
    // Beyond this machine: https, and `tls_config`.
    let endpoint = Channel::from_shared(format!("http://{jeton}"))?.timeout(Duration::from_secs(5));
    let tokens = Tokens {
        service: TokenServiceClient::new(endpoint.connect_lazy()),
        request: TokenRequest {
            client_id: env::var("CLIENT_ID")?,
            client_secret: env::var("CLIENT_SECRET")?,
            ..TokenRequest::default()
        },
        cached: Mutex::default(),
    };
    let (token, _) = tokio::try_join!(tokens.get(), tokens.get())?;

    let api: Uri = env::args().nth(1).ok_or("usage: caller URL")?.parse()?;
    let host = api.authority().ok_or("the URL has no host")?.as_str();
    let stream = TokioIo::new(TcpStream::connect(host).await?);
    let (mut sender, connection) = hyper::client::conn::http1::handshake(stream).await?;
    tokio::spawn(connection);
    let request = Request::get(api.path())
        .header(header::HOST, host)
        .header(header::AUTHORIZATION, format!("Bearer {token}"))
        .body(Empty::<bytes::Bytes>::new())?;
    let answer = sender.send_request(request).await?;
    let status = answer.status();
    println!(
        "{} {}",
        status.as_u16(),
        String::from_utf8_lossy(&answer.collect().await?.to_bytes())
    );
    Ok(())
}
