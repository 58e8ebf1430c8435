//! Keeps files in an object store: S3 and what speaks like it, Google Cloud Storage, Azure.
//!
//! Credentials, regions and endpoints come from the environment, as the crate `object_store` reads it (`AWS_...`,
//! `GOOGLE_...`, `AZURE_...`). An upload whose writer died leaves parts that no list shows; a lifecycle rule of the
//! bucket takes them away.

use std::fmt::Display;
use std::io::{self, ErrorKind};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use bytes::Bytes;
use futures_util::TryStreamExt;
use object_store::aws::AmazonS3Builder;
use object_store::azure::MicrosoftAzureBuilder;
use object_store::gcp::GoogleCloudStorageBuilder;
use object_store::path::Path;
use object_store::{Error, ObjectStoreExt, PutPayload, RetryConfig, WriteMultipart};
use tokio::runtime::{Builder, Runtime};

use crate::error::StoreError;
use crate::name;
use crate::store::Store;

/// What is read or written with one request, unless there would be too many parts.
const PIECE_BYTES: u64 = 8 << 20;
/// A file may be put together of 10,000 parts on S3; some room is left.
const PIECES_MAX: u64 = 9_000;
/// Pieces that are under way at once. Each is a copy of that part of the floats.
const PIECES_AT_ONCE: usize = 2;
/// How often and how long a request is repeated that the service could not answer.
const RETRIES: usize = 5;
const RETRY_FOR: Duration = Duration::from_secs(60);

/// A bucket, and a prefix in it.
#[derive(Debug)]
pub struct ObjectStore {
    service: Arc<dyn object_store::ObjectStore>,
    /// The location without its last slash.
    location: String,
    bucket: String,
    prefix: Path,
    /// Is there until it is dropped.
    runtime: Option<Runtime>,
}

impl ObjectStore {
    /// Opens `s3://BUCKET/PREFIX`, `gs://BUCKET/PREFIX` or `az://CONTAINER/PREFIX`. Nothing is sent yet.
    ///
    /// # Errors
    /// If the location or the environment is wrong.
    pub fn open(location: &str) -> Result<Self, StoreError> {
        let wrong =
            |why: &dyn Display| StoreError::Location { location: location.to_owned(), why: why.to_string() };
        let form = "right is s3://BUCKET/PREFIX, gs://BUCKET/PREFIX or az://CONTAINER/PREFIX";
        let (scheme, rest) = location.split_once("://").ok_or_else(|| wrong(&form))?;
        let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
        if bucket.is_empty() {
            return Err(wrong(&form));
        }
        let prefix = Path::parse(prefix.trim_end_matches('/')).map_err(|error| wrong(&error))?;
        let retry = RetryConfig { max_retries: RETRIES, retry_timeout: RETRY_FOR, ..RetryConfig::default() };
        let service: Result<Arc<dyn object_store::ObjectStore>, Error> = match scheme {
            "s3" => AmazonS3Builder::from_env()
                .with_bucket_name(bucket)
                .with_retry(retry)
                .build()
                .map(|service| Arc::new(service) as _),
            "gs" => GoogleCloudStorageBuilder::from_env()
                .with_bucket_name(bucket)
                .with_retry(retry)
                .build()
                .map(|service| Arc::new(service) as _),
            "az" => MicrosoftAzureBuilder::from_env()
                .with_container_name(bucket)
                .with_retry(retry)
                .build()
                .map(|service| Arc::new(service) as _),
            _ => return Err(wrong(&form)),
        };
        let service = service.map_err(|error| wrong(&error))?;
        let runtime = Builder::new_current_thread().enable_all().build().map_err(|error| wrong(&error))?;
        Ok(Self {
            service,
            location: location.trim_end_matches('/').to_owned(),
            bucket: bucket.to_owned(),
            prefix,
            runtime: Some(runtime),
        })
    }

    /// Waits for a request on a thread of its own, since the caller's may belong to another runtime.
    fn wait<T: Send>(&self, request: impl Future<Output = T> + Send) -> T {
        let runtime = self.runtime.as_ref().expect("the runtime is there until the store is dropped");
        thread::scope(|scope| match scope.spawn(|| runtime.block_on(request)).join() {
            Ok(result) => result,
            Err(panic) => std::panic::resume_unwind(panic),
        })
    }

    fn path(&self, name: &str) -> Result<Path, StoreError> {
        let (folder, file) = name::parts(name)?;
        Ok(self.prefix.clone().join(folder).join(file))
    }

    async fn upload(&self, path: &Path, parts: &[&[u8]]) -> Result<(), Error> {
        let total: u64 = parts.iter().map(|part| part.len() as u64).sum();
        if total <= PIECE_BYTES {
            self.service.put(path, PutPayload::from(Bytes::from(parts.concat()))).await?;
            return Ok(());
        }
        let piece = total.div_ceil(PIECES_MAX).max(PIECE_BYTES) as usize;
        let upload = self.service.put_multipart(path).await?;
        let mut upload = WriteMultipart::new_with_chunk_size(upload, piece);
        for bytes in parts.iter().flat_map(|part| part.chunks(piece)) {
            if let Err(error) = upload.wait_for_capacity(PIECES_AT_ONCE).await {
                // What went wrong first is what is told.
                let _ = upload.abort().await;
                return Err(error);
            }
            upload.write(bytes);
        }
        upload.finish().await?;
        Ok(())
    }

    async fn download(&self, path: &Path) -> Result<Vec<u8>, Error> {
        // By pieces, since the time for a request is limited whatever its length.
        let size = self.service.head(path).await?.size;
        let mut bytes = Vec::with_capacity(size as usize);
        let mut start = 0;
        while start < size {
            let end = size.min(start + PIECE_BYTES);
            bytes.extend_from_slice(&self.service.get_range(path, start..end).await?);
            start = end;
        }
        Ok(bytes)
    }

    /// Whether the bucket answers.
    async fn probe(&self) -> Result<(), Error> {
        self.service.list(Some(&self.prefix)).try_next().await.map(|_| ())
    }

    fn failed(&self, doing: &'static str, name: &str, error: &Error) -> StoreError {
        let what = if name.is_empty() { self.place() } else { format!("{}/{name}", self.location) };
        let text = error.to_string();
        let (kind, why) = match error {
            Error::NotFound { .. } => (ErrorKind::NotFound, format!("there is no bucket {}", self.bucket)),
            _ if text.contains("NoSuchBucket") => {
                (ErrorKind::NotFound, format!("there is no bucket {}", self.bucket))
            }
            Error::PermissionDenied { .. } | Error::Unauthenticated { .. } => {
                (ErrorKind::PermissionDenied, text)
            }
            _ => (ErrorKind::Other, text),
        };
        StoreError::failed(doing, what, &io::Error::new(kind, why))
    }
}

impl Store for ObjectStore {
    fn put(&self, name: &str, parts: &[&[u8]]) -> Result<(), StoreError> {
        let path = self.path(name)?;
        self.wait(self.upload(&path, parts)).map_err(|error| self.failed("write", name, &error))
    }

    fn read(&self, name: &str) -> Result<Vec<u8>, StoreError> {
        let path = self.path(name)?;
        self.wait(async {
            match self.download(&path).await {
                Err(Error::NotFound { .. }) => match self.probe().await {
                    Ok(()) => Err(StoreError::Missing { place: self.place(), name: name.to_owned() }),
                    Err(error) => Err(self.failed("read", name, &error)),
                },
                result => result.map_err(|error| self.failed("read", name, &error)),
            }
        })
    }

    fn list(&self) -> Result<Vec<String>, StoreError> {
        let found: Result<Vec<_>, Error> = self.wait(self.service.list(Some(&self.prefix)).try_collect());
        let found = found.map_err(|error| self.failed("list", "", &error))?;
        let mut files = Vec::new();
        for object in found {
            let Some(rest) = object.location.prefix_match(&self.prefix) else { continue };
            let name = rest.map(|part| part.as_ref().to_owned()).collect::<Vec<_>>().join("/");
            if name::parts(&name).is_ok() {
                files.push(name);
            }
        }
        files.sort_unstable();
        Ok(files)
    }

    fn delete(&self, name: &str) -> Result<(), StoreError> {
        let path = self.path(name)?;
        let result = self.wait(async {
            match self.service.delete(&path).await {
                Err(Error::NotFound { .. }) => self.probe().await,
                result => result,
            }
        });
        result.map_err(|error| self.failed("delete", name, &error))
    }

    fn place(&self) -> String {
        self.location.clone()
    }
}

impl Drop for ObjectStore {
    fn drop(&mut self) {
        // Dropping a runtime waits, which no thread of another runtime may do.
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}
