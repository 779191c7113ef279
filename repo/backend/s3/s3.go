// Package s3 keeps a repository in a bucket of an S3 service, in the layout restic calls default below a prefix.
//
// It hides the service: signing, listing in pages, what its error codes mean, and what deletion is where objects
// are locked. In a bucket with object lock a plain delete always succeeds and frees nothing: it puts a marker
// over the object. Here a file under retention or legal hold is [backend.ErrReadOnly] with the date, and one
// whose retention is over is deleted for good. Lock files only get the marker: they have to go at once.
package s3

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"path"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/minio/minio-go/v7"
	"github.com/minio/minio-go/v7/pkg/credentials"

	"github.com/vmkeep/vmkeep/repo/backend"
	"github.com/vmkeep/vmkeep/repo/restic"
)

// DefaultConnections is how many concurrent requests a service bears well; restic's figure.
const DefaultConnections = 5

// partSize keeps every pack (at most 128 MiB and one blob) a single request, which is atomic and carries an MD5.
const partSize = 200 << 20

// Config says which bucket and how to reach it.
type Config struct {
	// Endpoint is host or host:port; HTTP says that it does not speak TLS.
	Endpoint string
	HTTP     bool
	Bucket   string
	Prefix   string // without slashes at its ends; may be empty
	Region   string // empty: asked of the service
	// Lookup is "auto", "dns" (bucket.host) or "path" (host/bucket); empty is auto.
	Lookup string
	// StorageClass of new objects; empty is the bucket's default. Archive classes are refused.
	StorageClass string
	// ListV1 lists with the first version of the request, for services without the second.
	ListV1      bool
	Credentials *credentials.Credentials
	Connections int               // 0 means DefaultConnections
	Transport   http.RoundTripper // nil means http.DefaultTransport
}

// Backend is a bucket. Its methods are those of [backend.Backend].
type Backend struct {
	cfg    Config
	client *minio.Client
	// locking: the bucket was made with object lock.
	locking bool
	now     func() time.Time
}

var _ backend.Backend = (*Backend)(nil)

func newBackend(cfg Config) (*Backend, error) {
	lookup := map[string]minio.BucketLookupType{
		"": minio.BucketLookupAuto, "auto": minio.BucketLookupAuto, "dns": minio.BucketLookupDNS, "path": minio.BucketLookupPath,
	}
	how, ok := lookup[cfg.Lookup]
	if !ok {
		return nil, backend.Permanent(fmt.Errorf("s3.bucket-lookup %q is none of auto, dns, path", cfg.Lookup))
	}
	switch cfg.StorageClass {
	case "GLACIER", "DEEP_ARCHIVE":
		return nil, backend.Permanent(fmt.Errorf("storage class %s takes hours to read a file; use one that reads at once, such as GLACIER_IR", cfg.StorageClass))
	}
	if cfg.Connections <= 0 {
		cfg.Connections = DefaultConnections
	}
	if cfg.Transport == nil {
		cfg.Transport = http.DefaultTransport
	}
	client, err := minio.New(cfg.Endpoint, &minio.Options{
		Creds: cfg.Credentials, Secure: !cfg.HTTP, Region: cfg.Region, BucketLookup: how, Transport: cfg.Transport,
		MaxRetries: 1, // one try: package backend retries, with its own budget
	})
	if err != nil {
		return nil, backend.Permanent(fmt.Errorf("S3 endpoint %q: %w", cfg.Endpoint, err))
	}
	client.SetAppInfo("vmkeep", "")
	return &Backend{cfg: cfg, client: client, now: time.Now}, nil
}

// Open uses the repository at cfg. A missing bucket is [backend.ErrNotExist].
func Open(ctx context.Context, cfg Config) (*Backend, error) {
	b, err := newBackend(cfg)
	if err != nil {
		return nil, err
	}
	if err := b.detectLocking(ctx); err != nil {
		return nil, fmt.Errorf("open %s: %w", b.Location(), err)
	}
	return b, nil
}

// Create makes the bucket unless it exists.
func Create(ctx context.Context, cfg Config) (*Backend, error) {
	b, err := newBackend(cfg)
	if err != nil {
		return nil, err
	}
	// Not asked first: keys are often allowed to use a bucket, but not to ask for it.
	err = b.client.MakeBucket(ctx, cfg.Bucket, minio.MakeBucketOptions{Region: cfg.Region})
	switch code := codeOf(err); {
	case err == nil, code == "BucketAlreadyOwnedByYou":
	case code == "BucketAlreadyExists", code == "AccessDenied":
		// Whether it can be used shows when config is saved.
	default:
		return nil, fmt.Errorf("create bucket %s: %w", cfg.Bucket, b.explain(ctx, err))
	}
	return Open(ctx, cfg)
}

// detectLocking asks whether the bucket was made with object lock. No definite answer is an error: to take a busy
// service for one without object lock would hide retained files behind delete markers.
func (b *Backend) detectLocking(ctx context.Context) error {
	_, _, _, _, err := b.client.GetObjectLockConfig(ctx, b.cfg.Bucket)
	if err == nil {
		b.locking = true
		return nil
	}
	var resp minio.ErrorResponse
	switch known := errors.As(err, &resp); {
	case !known, ctx.Err() != nil, resp.StatusCode >= 500 && resp.StatusCode != http.StatusNotImplemented:
		return b.explain(ctx, err)
	case resp.Code == "NoSuchBucket", resp.Code == "InvalidAccessKeyId", resp.Code == "SignatureDoesNotMatch", resp.Code == "SlowDown":
		return b.explain(ctx, err)
	}
	// No object lock, or a service that does not know it, or a key that may not ask. The last is harmless: the
	// service refuses what it protects.
	return nil
}

func (b *Backend) key(h backend.Handle) string {
	switch h.Type {
	case restic.ConfigFile:
		return path.Join(b.cfg.Prefix, "config")
	case restic.PackFile:
		return path.Join(b.cfg.Prefix, "data", h.Name[:2], h.Name)
	}
	return path.Join(b.cfg.Prefix, h.String())
}

// Save stores data as h unless it is there. The service makes an object visible at once and whole; it is asked
// first because it would replace what is there.
func (b *Backend) Save(ctx context.Context, h backend.Handle, data []byte) error {
	info, err := b.Stat(ctx, h)
	switch {
	case errors.Is(err, backend.ErrNotExist):
	case err != nil:
		return fmt.Errorf("save %w", err)
	case h.Type == restic.ConfigFile:
		return fmt.Errorf("save config: %w", backend.ErrExist)
	case info.Size != int64(len(data)):
		return fmt.Errorf("save %s: %d bytes are stored under this name, not %d: %w", h, info.Size, len(data), backend.ErrExist)
	default:
		return nil
	}
	opts := minio.PutObjectOptions{
		ContentType: "application/octet-stream", StorageClass: b.cfg.StorageClass,
		SendContentMd5: true, // required by buckets with object lock, and checked by all
		PartSize:       partSize, NumThreads: 1,
	}
	if h.Type == restic.ConfigFile {
		opts.SetMatchETagExcept("*") // two inits at once: one loses
	}
	err = b.put(ctx, h, data, opts)
	if code := codeOf(err); code == "NotImplemented" && h.Type == restic.ConfigFile {
		opts = minio.PutObjectOptions{ContentType: opts.ContentType, StorageClass: opts.StorageClass, SendContentMd5: true}
		err = b.put(ctx, h, data, opts) // a service without conditional writes
	}
	if err != nil {
		return fmt.Errorf("save %s: %w", h, b.explain(ctx, err))
	}
	return nil
}

func (b *Backend) put(ctx context.Context, h backend.Handle, data []byte, opts minio.PutObjectOptions) error {
	info, err := b.client.PutObject(ctx, b.cfg.Bucket, b.key(h), bytes.NewReader(data), int64(len(data)), opts)
	if err == nil && info.Size != int64(len(data)) {
		return fmt.Errorf("service stored %d of %d bytes", info.Size, len(data))
	}
	return err
}

// Load reads a range.
func (b *Backend) Load(ctx context.Context, h backend.Handle, offset, length int64, fn func(io.Reader) error) error {
	if err := begin(ctx, h); err != nil {
		return err
	}
	var opts minio.GetObjectOptions
	switch {
	case offset < 0 || length < 0 || offset+length < 0:
		return backend.Permanent(fmt.Errorf("load %s: bytes %d+%d", h, offset, length))
	case length > 0:
		opts.Set("Range", fmt.Sprintf("bytes=%d-%d", offset, offset+length-1))
	case offset > 0:
		opts.Set("Range", fmt.Sprintf("bytes=%d-", offset))
	}
	core := minio.Core{Client: b.client}
	body, info, header, err := core.GetObject(ctx, b.cfg.Bucket, b.key(h), opts)
	if err != nil {
		return fmt.Errorf("load %s: %w", h, b.explain(ctx, err))
	}
	defer body.Close()
	size := info.Size
	if s := header.Get("Content-Range"); s != "" {
		_, total, _ := strings.Cut(s, "/")
		if size, err = strconv.ParseInt(total, 10, 64); err != nil {
			return fmt.Errorf("load %s: service sends Content-Range %q", h, s)
		}
	} else if opts.Header().Get("Range") != "" {
		return backend.Permanent(fmt.Errorf("load %s: service ignores ranges", h))
	}
	n, err := backend.CheckRange(offset, length, size)
	if err == nil {
		err = backend.Deliver(ctx, body, n, fn)
	}
	if err != nil {
		return fmt.Errorf("load %s: %w", h, err)
	}
	return nil
}

// Stat tells a file's size.
func (b *Backend) Stat(ctx context.Context, h backend.Handle) (backend.FileInfo, error) {
	info, err := b.stat(ctx, h)
	if err != nil {
		return backend.FileInfo{}, err
	}
	return backend.FileInfo{Name: h.Name, Size: info.Size}, nil
}

func (b *Backend) stat(ctx context.Context, h backend.Handle) (minio.ObjectInfo, error) {
	if err := begin(ctx, h); err != nil {
		return minio.ObjectInfo{}, err
	}
	info, err := b.client.StatObject(ctx, b.cfg.Bucket, b.key(h), minio.StatObjectOptions{})
	if err != nil {
		return minio.ObjectInfo{}, fmt.Errorf("stat %s: %w", h, b.explain(ctx, err))
	}
	return info, nil
}

// List asks for page after page.
func (b *Backend) List(ctx context.Context, t restic.FileType, fn func(backend.FileInfo) error) error {
	if t == restic.ConfigFile {
		return backend.Permanent(errors.New("list config: it is one file, not a directory"))
	}
	if err := context.Cause(ctx); err != nil {
		return err
	}
	prefix := path.Join(b.cfg.Prefix, string(t)) + "/"
	for object := range b.client.ListObjectsIter(ctx, b.cfg.Bucket, minio.ListObjectsOptions{Prefix: prefix, Recursive: true, UseV1: b.cfg.ListV1}) {
		if object.Err != nil {
			return fmt.Errorf("list %s: %w", t, b.explain(ctx, object.Err))
		}
		name := path.Base(object.Key)
		if !backend.IsName(name) || object.Key != b.key(backend.Handle{Type: t, Name: name}) {
			continue
		}
		if err := fn(backend.FileInfo{Name: name, Size: object.Size}); err != nil {
			return err
		}
	}
	return context.Cause(ctx)
}

// Remove deletes a file; see the package comment for locked objects.
func (b *Backend) Remove(ctx context.Context, h backend.Handle) error {
	if err := begin(ctx, h); err != nil {
		return err
	}
	var opts minio.RemoveObjectOptions
	if b.locking && h.Type != restic.LockFile {
		info, err := b.stat(ctx, h)
		if err != nil {
			return fmt.Errorf("remove %w", err)
		}
		switch until := b.retention(ctx, b.key(h), info); {
		case until.Equal(backend.Forever()):
			return fmt.Errorf("remove %s: under legal hold: %w", h, backend.ErrReadOnly)
		case until.After(b.now()):
			return fmt.Errorf("remove %s: retained by object lock until %s: %w", h, until.UTC().Format(time.RFC3339), backend.ErrReadOnly)
		}
		opts.VersionID = info.VersionID
	}
	err := b.client.RemoveObject(ctx, b.cfg.Bucket, b.key(h), opts)
	if err == nil {
		return nil
	}
	switch codeOf(err) {
	case "AccessDenied", "MethodNotAllowed", "ObjectLocked", "InvalidRequest":
		return fmt.Errorf("remove %s: %w: %w", h, err, backend.ErrReadOnly)
	}
	return fmt.Errorf("remove %s: %w", h, b.explain(ctx, err))
}

// Retained asks for the retention of the object's newest version.
func (b *Backend) Retained(ctx context.Context, h backend.Handle) (time.Time, error) {
	if !b.locking || h.Type == restic.LockFile {
		return time.Time{}, nil
	}
	info, err := b.stat(ctx, h)
	if err != nil {
		return time.Time{}, err
	}
	if until := b.retention(ctx, b.key(h), info); until.After(b.now()) {
		return until, nil
	}
	return time.Time{}, nil
}

// retention is until when the service keeps an object. Keys that may not ask get no date; the service then refuses the
// deletion itself.
func (b *Backend) retention(ctx context.Context, key string, info minio.ObjectInfo) time.Time {
	if strings.EqualFold(info.Metadata.Get("X-Amz-Object-Lock-Legal-Hold"), "ON") {
		return backend.Forever()
	}
	// Services may tell it with the object's size; not all do.
	until, err := time.Parse(time.RFC3339, info.Metadata.Get("X-Amz-Object-Lock-Retain-Until-Date"))
	if err != nil {
		_, date, err := b.client.GetObjectRetention(ctx, b.cfg.Bucket, key, info.VersionID)
		if err != nil || date == nil {
			return time.Time{}
		}
		until = *date
	}
	return until
}

// Connections is the figure given at Open.
func (b *Backend) Connections() int { return b.cfg.Connections }

// Location is endpoint, bucket and prefix.
func (b *Backend) Location() string {
	scheme := "https"
	if b.cfg.HTTP {
		scheme = "http"
	}
	return "s3:" + scheme + "://" + path.Join(b.cfg.Endpoint, b.cfg.Bucket, b.cfg.Prefix)
}

// Close closes idle connections.
func (b *Backend) Close() error {
	(&http.Client{Transport: b.cfg.Transport}).CloseIdleConnections()
	return nil
}

// codeOf is the service's code for an error, empty if it is not the service's.
func codeOf(err error) string {
	var resp minio.ErrorResponse
	if errors.As(err, &resp) {
		return resp.Code
	}
	return ""
}

// explain adds what callers ask of an error, from the service's code.
func (b *Backend) explain(ctx context.Context, err error) error {
	if err == nil {
		return nil
	}
	if ctx.Err() != nil {
		return errors.Join(context.Cause(ctx), err)
	}
	switch codeOf(err) {
	case "NoSuchKey":
		return backend.Mark(err, backend.ErrNotExist)
	case "NoSuchBucket":
		return backend.Mark(fmt.Errorf("bucket %s: %w", b.cfg.Bucket, err), backend.ErrNotExist)
	case "PreconditionFailed", "ConditionalRequestConflict":
		return backend.Mark(err, backend.ErrExist)
	case "AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken", "InvalidToken", "AuthorizationHeaderMalformed":
		return backend.Permanent(fmt.Errorf("%w (check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_DEFAULT_REGION and the key's policy)", err))
	case "QuotaExceeded", "XMinioAdminBucketQuotaExceeded", "XMinioStorageFull":
		return backend.Permanent(backend.Mark(err, syscall.ENOSPC))
	case "InvalidRange", "InvalidBucketName", "MethodNotAllowed", "InvalidRequest",
		"InvalidStorageClass", "PermanentRedirect":
		return backend.Permanent(err)
	}
	return backend.ExplainNetwork(err)
}

func begin(ctx context.Context, h backend.Handle) error {
	if err := h.Check(); err != nil {
		return err
	}
	return context.Cause(ctx)
}
