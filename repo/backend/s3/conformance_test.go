package s3_test

import (
	"context"
	"crypto/md5"
	"encoding/base64"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/minio/minio-go/v7"
	"github.com/minio/minio-go/v7/pkg/credentials"
	"golang.org/x/sync/errgroup"

	"github.com/vmkeep/vmkeep/repo/backend"
	"github.com/vmkeep/vmkeep/repo/backend/backendtest"
	"github.com/vmkeep/vmkeep/repo/backend/backendtest/peers"
	"github.com/vmkeep/vmkeep/repo/backend/s3"
	"github.com/vmkeep/vmkeep/repo/restic"
)

// config reaches a repository of its own below the peer's location.
func config(t *testing.T, p peers.Peer) s3.Config {
	t.Helper()
	u, err := url.Parse(strings.TrimPrefix(p.Location, "s3:"))
	if err != nil {
		t.Fatal(err)
	}
	bucket, prefix, _ := strings.Cut(strings.Trim(u.Path, "/"), "/")
	return s3.Config{
		Endpoint: u.Host, HTTP: true, Bucket: bucket, Prefix: prefix + "/" + strings.NewReplacer("/", "-", "'", "").Replace(t.Name()),
		Credentials: credentials.NewStaticV4(peers.AccessKey, peers.SecretKey, ""),
		Transport:   http.DefaultTransport.(*http.Transport).Clone(),
	}
}

func create(t *testing.T, cfg s3.Config) backend.Backend {
	t.Helper()
	b, err := s3.Create(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func client(t *testing.T, cfg s3.Config) *minio.Client {
	t.Helper()
	c, err := minio.New(cfg.Endpoint, &minio.Options{Creds: cfg.Credentials})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestS3KeepsTheGuarantees(t *testing.T) {
	p := peers.S3(t)
	backendtest.Run(t, func(t *testing.T) backend.Backend { return create(t, config(t, p)) })
}

func TestS3WithoutPrefixKeepsTheGuarantees(t *testing.T) {
	p := peers.S3(t)
	n := 0
	backendtest.Run(t, func(t *testing.T) backend.Backend {
		cfg := config(t, p)
		n++
		cfg.Bucket, cfg.Prefix = fmt.Sprintf("%s-%d", cfg.Bucket, n), ""
		return create(t, cfg)
	})
}

func TestListingGoesThroughAllPages(t *testing.T) {
	b := create(t, config(t, peers.S3(t)))
	defer b.Close()
	const files = 1100 // a page holds 1000
	var g errgroup.Group
	g.SetLimit(8)
	for range files {
		g.Go(func() error {
			data := backendtest.Bytes(20)
			return b.Save(t.Context(), backendtest.HandleOf(restic.PackFile, data), data)
		})
	}
	if err := g.Wait(); err != nil {
		t.Fatal(err)
	}
	names := map[string]bool{}
	err := b.List(t.Context(), restic.PackFile, func(info backend.FileInfo) error {
		names[info.Name] = true
		return nil
	})
	if err != nil || len(names) != files {
		t.Errorf("%d files listed, %v; want %d", len(names), err, files)
	}
}

func TestListSkipsWhatIsNoFileOfTheRepository(t *testing.T) {
	cfg := config(t, peers.S3(t))
	b := create(t, cfg)
	defer b.Close()
	name := strings.Repeat("ab", 32)
	for _, key := range []string{"keys/README", "keys/old/" + name, "data/" + name, "data/cd/" + name, "data/ab/" + name + "x"} {
		_, err := client(t, cfg).PutObject(t.Context(), cfg.Bucket, cfg.Prefix+"/"+key, strings.NewReader("x"), 1, minio.PutObjectOptions{})
		if err != nil {
			t.Fatal(err)
		}
	}
	for _, ft := range []restic.FileType{restic.KeyFile, restic.PackFile} {
		err := b.List(t.Context(), ft, func(info backend.FileInfo) error {
			t.Errorf("List(%s) tells %s", ft, info.Name)
			return nil
		})
		if err != nil {
			t.Error(err)
		}
	}
}

// recorder keeps the requests that go by.
type recorder struct {
	http.RoundTripper
	mu   sync.Mutex
	seen []*http.Request
}

func (r *recorder) RoundTrip(req *http.Request) (*http.Response, error) {
	r.mu.Lock()
	r.seen = append(r.seen, req.Clone(context.Background()))
	r.mu.Unlock()
	return r.RoundTripper.RoundTrip(req)
}

func TestRequestsCarryWhatWasConfigured(t *testing.T) {
	cfg := config(t, peers.S3(t))
	rec := &recorder{RoundTripper: cfg.Transport}
	cfg.Transport, cfg.StorageClass, cfg.ListV1 = rec, "STANDARD", true
	b := create(t, cfg)
	defer b.Close()
	data := backendtest.Bytes(6 << 20) // beyond minio-go's own limit for one request
	h := backendtest.HandleOf(restic.PackFile, data)
	if err := b.Save(t.Context(), h, data); err != nil {
		t.Fatal(err)
	}
	if err := b.List(t.Context(), restic.PackFile, func(backend.FileInfo) error { return nil }); err != nil {
		t.Fatal(err)
	}
	puts, lists := 0, 0
	for _, req := range rec.seen {
		if !strings.HasPrefix(req.URL.Path, "/"+cfg.Bucket) {
			t.Errorf("%s is not path style", req.URL)
		}
		if req.Method == http.MethodPut && strings.HasSuffix(req.URL.Path, h.Name) {
			puts++
			sum := md5.Sum(data)
			if got := req.Header.Get("Content-Md5"); got != base64.StdEncoding.EncodeToString(sum[:]) {
				t.Errorf("Content-MD5 %q", got)
			}
			if got := req.Header.Get("X-Amz-Storage-Class"); got != "STANDARD" {
				t.Errorf("storage class %q", got)
			}
			// Over http the signature is in the stream as well.
			if req.ContentLength < int64(len(data)) {
				t.Errorf("%d bytes in one request, want all %d", req.ContentLength, len(data))
			}
		}
		if query := req.URL.Query(); query.Has("prefix") {
			lists++
			if query.Get("list-type") == "2" {
				t.Errorf("listing of version 2: %s", req.URL)
			}
		}
	}
	if puts != 1 || lists == 0 {
		t.Errorf("%d uploads, %d listings", puts, lists)
	}
}

// locked makes a bucket in which every new object is retained for a day.
func locked(t *testing.T, cfg s3.Config, mode minio.RetentionMode) {
	t.Helper()
	c := client(t, cfg)
	if err := c.MakeBucket(t.Context(), cfg.Bucket, minio.MakeBucketOptions{ObjectLocking: true}); err != nil {
		t.Fatal(err)
	}
	days, unit := uint(1), minio.Days
	if err := c.SetObjectLockConfig(t.Context(), cfg.Bucket, &mode, &days, &unit); err != nil {
		t.Fatal(err)
	}
}

func TestLockedBucketKeepsTheGuaranteesOfAppendOnlyStores(t *testing.T) {
	for _, mode := range []minio.RetentionMode{minio.Compliance, minio.Governance} {
		t.Run(mode.String(), func(t *testing.T) {
			cfg := config(t, peers.S3(t))
			locked(t, cfg, mode)
			backendtest.RunAppendOnly(t, func(t *testing.T) backend.Backend { return create(t, cfg) })
		})
	}
}

func TestRetentionThatIsOverIsDeletedForGood(t *testing.T) {
	cfg := config(t, peers.S3(t))
	c := client(t, cfg)
	if err := c.MakeBucket(t.Context(), cfg.Bucket, minio.MakeBucketOptions{ObjectLocking: true}); err != nil {
		t.Fatal(err)
	}
	b := create(t, cfg)
	defer b.Close()
	data := backendtest.Bytes(100)
	h := backendtest.HandleOf(restic.PackFile, data)
	if err := b.Save(t.Context(), h, data); err != nil {
		t.Fatal(err)
	}
	if err := b.Remove(t.Context(), h); err != nil {
		t.Fatal(err)
	}
	for object := range c.ListObjectsIter(t.Context(), cfg.Bucket, minio.ListObjectsOptions{Recursive: true, WithVersions: true}) {
		if object.Err != nil {
			t.Fatal(object.Err)
		}
		t.Errorf("version %s of %s (delete marker: %v) is still there", object.VersionID, object.Key, object.IsDeleteMarker)
	}
}

// flaky answers the first requests for the bucket's object lock as an overloaded service.
type flaky struct {
	http.RoundTripper
	left atomic.Int32
}

func (f *flaky) RoundTrip(req *http.Request) (*http.Response, error) {
	if req.URL.Query().Has("object-lock") && f.left.Add(-1) >= 0 {
		return &http.Response{StatusCode: http.StatusServiceUnavailable, Status: "503 Service Unavailable", Header: http.Header{}, Body: http.NoBody, Request: req}, nil
	}
	return f.RoundTripper.RoundTrip(req)
}

func TestObjectLockIsNeverGuessed(t *testing.T) {
	cfg := config(t, peers.S3(t))
	locked(t, cfg, minio.Compliance)
	busy := &flaky{RoundTripper: cfg.Transport}
	cfg.Transport = busy
	busy.left.Store(1)
	if _, err := s3.Open(t.Context(), cfg); err == nil || errors.Is(err, backend.ErrPermanent) || errors.Is(err, backend.ErrNotExist) {
		t.Errorf("Open of a busy service: %v", err)
	}
	b, err := s3.Open(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	data := backendtest.Bytes(100)
	h := backendtest.HandleOf(restic.PackFile, data)
	if err := b.Save(t.Context(), h, data); err != nil {
		t.Fatal(err)
	}
	if err := b.Remove(t.Context(), h); !errors.Is(err, backend.ErrReadOnly) {
		t.Errorf("Remove: %v", err)
	}
}

func TestRefusalNamesTheDate(t *testing.T) {
	cfg := config(t, peers.S3(t))
	locked(t, cfg, minio.Compliance)
	b := create(t, cfg)
	defer b.Close()
	data := backendtest.Bytes(100)
	h := backendtest.HandleOf(restic.SnapshotFile, data)
	if err := b.Save(t.Context(), h, data); err != nil {
		t.Fatal(err)
	}
	// AWS writes the bucket's default into each object; versitygw applies it when something is deleted.
	mode, until := minio.Compliance, time.Now().Add(24*time.Hour)
	key := cfg.Prefix + "/snapshots/" + h.Name
	if err := client(t, cfg).PutObjectRetention(t.Context(), cfg.Bucket, key, minio.PutObjectRetentionOptions{Mode: &mode, RetainUntilDate: &until}); err != nil {
		t.Fatal(err)
	}
	if told, err := b.Retained(t.Context(), h); err != nil || !told.Equal(until.Truncate(time.Second)) && !told.Equal(until.Truncate(time.Millisecond)) {
		t.Errorf("Retained: %v, %v; want %v", told, err, until)
	}
	err := b.Remove(t.Context(), h)
	if !errors.Is(err, backend.ErrReadOnly) || !strings.Contains(err.Error(), "retained by object lock until "+until.UTC().Format("2006-01-02")) {
		t.Errorf("Remove: %v", err)
	}
}

func TestOpenReportsWhatIsWrong(t *testing.T) {
	good := config(t, peers.S3(t))
	for name, test := range map[string]struct {
		change func(*s3.Config)
		want   error
		text   string
	}{
		"missing bucket": {func(c *s3.Config) {}, backend.ErrNotExist, "bucket " + good.Bucket},
		"wrong secret": {func(c *s3.Config) {
			c.Credentials = credentials.NewStaticV4(peers.AccessKey, "not-the-"+peers.SecretKey, "")
		}, backend.ErrPermanent, "AWS_SECRET_ACCESS_KEY"},
		"archive class": {func(c *s3.Config) { c.StorageClass = "DEEP_ARCHIVE" }, backend.ErrPermanent, "GLACIER_IR"},
		"lookup":        {func(c *s3.Config) { c.Lookup = "guess" }, backend.ErrPermanent, "auto, dns, path"},
	} {
		t.Run(name, func(t *testing.T) {
			cfg := good
			test.change(&cfg)
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			_, err := s3.Open(ctx, cfg)
			if !errors.Is(err, test.want) || !strings.Contains(err.Error(), test.text) {
				t.Errorf("Open: %v", err)
			}
			if err != nil && strings.Contains(err.Error(), peers.SecretKey) {
				t.Errorf("the error shows the secret: %v", err)
			}
		})
	}
}
