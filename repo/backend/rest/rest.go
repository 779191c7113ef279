// Package rest keeps a repository on a server that speaks restic's REST protocol: rest-server, or
// `rclone serve restic`.
//
//	POST   {base}?create=true        make the repository
//	HEAD   {base}{type}/{name}       size, as Content-Length; config has no type
//	GET    {base}{type}/{name}       content; Range is honoured
//	POST   {base}{type}/{name}       store
//	DELETE {base}{type}/{name}       refused with 403 by append-only servers
//	GET    {base}{type}/             list: [{"name","size"}] in version 2, ["name"] in version 1
//
// It hides what the protocol leaves open: servers that overwrite, that leave half a file behind a broken upload,
// that list names only, and what each status means to a caller.
package rest

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/vmkeep/vmkeep/repo/backend"
	"github.com/vmkeep/vmkeep/repo/restic"
)

// DefaultConnections is how many concurrent requests a server bears well; restic's figure.
const DefaultConnections = 5

const typeV2 = "application/vnd.x.restic.rest.v2"

// Config says which server and how to reach it.
type Config struct {
	// URL is the repository's, http or https, without credentials.
	URL *url.URL
	// Username and Password are for basic authentication; none if both are empty.
	Username, Password string
	// Connections 0 means DefaultConnections.
	Connections int
	// Transport carries the requests; nil means http.DefaultTransport. Close closes its idle connections.
	Transport http.RoundTripper
}

// Backend is a repository on a REST server. Its methods are those of [backend.Backend].
type Backend struct {
	cfg    Config
	base   string // ends with a slash
	client *http.Client

	// Some servers show a file from its first byte on, and overwrite. Two savers of one file in this process
	// must not meet there; files of different processes have different names, for encryption is random.
	mu     sync.Mutex
	saving map[backend.Handle]chan struct{} // closed when the saver is done
}

var _ backend.Backend = (*Backend)(nil)

// Open uses the repository at cfg.URL. It sends nothing.
func Open(cfg Config) (*Backend, error) {
	if cfg.URL == nil || cfg.URL.Host == "" || (cfg.URL.Scheme != "http" && cfg.URL.Scheme != "https") {
		return nil, backend.Permanent(errors.New("REST repositories need a URL like https://host:8000/path/"))
	}
	if cfg.Connections <= 0 {
		cfg.Connections = DefaultConnections
	}
	u := *cfg.URL
	u.User = nil // or every error would show it
	u.RawQuery, u.Fragment = "", ""
	return &Backend{cfg: cfg, base: strings.TrimSuffix(u.String(), "/") + "/", client: &http.Client{Transport: cfg.Transport}, saving: make(map[backend.Handle]chan struct{})}, nil
}

// Create has the server make the repository's directories. Servers answer alike when they exist.
func Create(ctx context.Context, cfg Config) (*Backend, error) {
	b, err := Open(cfg)
	if err != nil {
		return nil, err
	}
	resp, err := b.do(ctx, request{method: http.MethodPost, url: b.base + "?create=true", body: []byte{}})
	if err == nil {
		err = finish(resp, http.StatusOK)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("create repository: %w", err), b.Close())
	}
	return b, nil
}

func (b *Backend) url(h backend.Handle) string { return b.base + h.String() }

type request struct {
	method, url string
	body        []byte // nil means none
	accept      string
	ranged      string // value of the Range header
}

func (b *Backend) do(ctx context.Context, r request) (*http.Response, error) {
	var body io.Reader
	if r.body != nil {
		body = bytes.NewReader(r.body) // carries Content-Length, and can be sent again after a redirect
	}
	req, err := http.NewRequestWithContext(ctx, r.method, r.url, body)
	if err != nil {
		return nil, backend.Permanent(err)
	}
	if r.body != nil {
		req.Header.Set("Content-Type", "application/octet-stream")
	}
	if r.accept != "" {
		req.Header.Set("Accept", r.accept)
	}
	if r.ranged != "" {
		req.Header.Set("Range", r.ranged)
	}
	// Without it the transport would ask for gzip and hide the length.
	req.Header.Set("Accept-Encoding", "identity")
	req.Header.Set("User-Agent", "vmkeep")
	if b.cfg.Username != "" || b.cfg.Password != "" {
		req.SetBasicAuth(b.cfg.Username, b.cfg.Password)
	}
	resp, err := b.client.Do(req)
	if err != nil && ctx.Err() != nil {
		return nil, errors.Join(context.Cause(ctx), err)
	}
	return resp, backend.ExplainNetwork(err)
}

// drainLimit is what is read of an unread answer so that its connection can be used again; more is cheaper to
// drop with the connection.
const drainLimit = 64 << 10

func discard(resp *http.Response) {
	_, _ = io.CopyN(io.Discard, resp.Body, drainLimit) // whatever is left does not matter to anybody
	_ = resp.Body.Close()
}

// finish ends a request of which only the status matters.
func finish(resp *http.Response, want int) error {
	defer discard(resp)
	if resp.StatusCode == want {
		return nil
	}
	return statusError(resp)
}

// statusError explains an unexpected status, with the first line of what the server says about it.
func statusError(resp *http.Response) error {
	text, _ := io.ReadAll(io.LimitReader(resp.Body, 200)) // only for people; may well be missing
	line, _, _ := strings.Cut(strings.TrimSpace(string(text)), "\n")
	err := fmt.Errorf("server answers %s", resp.Status)
	if line != "" && line != http.StatusText(resp.StatusCode) {
		err = fmt.Errorf("server answers %s: %q", resp.Status, line)
	}
	switch code := resp.StatusCode; {
	case code == http.StatusNotFound:
		return fmt.Errorf("%w: %w", err, backend.ErrNotExist)
	case code == http.StatusUnauthorized:
		return backend.Permanent(fmt.Errorf("%w (check RESTIC_REST_USERNAME and RESTIC_REST_PASSWORD)", err))
	case code == http.StatusRequestTimeout, code == http.StatusTooEarly, code == http.StatusTooManyRequests:
		return err
	case code == http.StatusInsufficientStorage, code == http.StatusRequestEntityTooLarge:
		return backend.Permanent(backend.Mark(err, syscall.ENOSPC)) // what --max-size of rest-server ends in
	case code >= 400 && code < 500, code == http.StatusNotImplemented:
		return backend.Permanent(err)
	}
	return err
}

// Save stores data as h unless it is there.
//
// rclone overwrites silently, so the server is asked first; it costs one small request per file.
func (b *Backend) Save(ctx context.Context, h backend.Handle, data []byte) error {
	if err := begin(ctx, h); err != nil {
		return err
	}
	done, err := b.alone(ctx, h)
	if err != nil {
		return err
	}
	defer done()
	if done, err := b.stored(ctx, h, len(data)); done || err != nil {
		return err
	}
	if data == nil {
		data = []byte{}
	}
	resp, err := b.do(ctx, request{method: http.MethodPost, url: b.url(h), body: data})
	if err == nil {
		err = finish(resp, http.StatusOK)
	}
	if err == nil {
		return nil
	}
	// rest-server refuses a file that came to be since we asked, with the status of any other refusal.
	if resp != nil && resp.StatusCode == http.StatusForbidden {
		if done, err := b.stored(ctx, h, len(data)); done || err != nil {
			return err
		}
	}
	return fmt.Errorf("save %s: %w", h, errors.Join(err, b.dropPart(ctx, h, len(data))))
}

// alone waits until nobody else saves h; done lets the next one in.
func (b *Backend) alone(ctx context.Context, h backend.Handle) (done func(), err error) {
	for {
		b.mu.Lock()
		other, busy := b.saving[h]
		if !busy {
			mine := make(chan struct{})
			b.saving[h] = mine
			b.mu.Unlock()
			return func() {
				b.mu.Lock()
				delete(b.saving, h)
				b.mu.Unlock()
				close(mine)
			}, nil
		}
		b.mu.Unlock()
		select {
		case <-other:
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
}

// stored reports whether h is there as it should be; that it is otherwise is an error.
func (b *Backend) stored(ctx context.Context, h backend.Handle, size int) (bool, error) {
	info, err := b.Stat(ctx, h)
	switch {
	case errors.Is(err, backend.ErrNotExist):
		return false, nil
	case err != nil:
		return false, fmt.Errorf("save %w", err)
	case h.Type == restic.ConfigFile:
		return false, fmt.Errorf("save config: %w", backend.ErrExist)
	case info.Size != int64(size):
		return false, fmt.Errorf("save %s: %d bytes are stored under this name, not %d: %w", h, info.Size, size, backend.ErrExist)
	}
	return true, nil
}

// dropPart removes what a broken upload may have left: it would hold the name for good. The name is the
// content's hash and was free when we began, so nobody else's file is in danger; config is not named so.
func (b *Backend) dropPart(ctx context.Context, h backend.Handle, size int) error {
	if h.Type == restic.ConfigFile {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
	defer cancel()
	info, err := b.Stat(ctx, h)
	if err != nil || info.Size == int64(size) {
		return nil // nothing there, or all of it; if the server cannot be asked, the retry finds out
	}
	if err := b.Remove(ctx, h); err != nil {
		return fmt.Errorf("%d of %d bytes stay behind: %w", info.Size, size, err)
	}
	return nil
}

// Load reads a range.
func (b *Backend) Load(ctx context.Context, h backend.Handle, offset, length int64, fn func(io.Reader) error) error {
	if err := begin(ctx, h); err != nil {
		return err
	}
	if err := b.load(ctx, h, [2]int64{offset, length}, fn); err != nil {
		return fmt.Errorf("load %s: %w", h, err)
	}
	return nil
}

func (b *Backend) load(ctx context.Context, h backend.Handle, part [2]int64, fn func(io.Reader) error) error {
	offset, length := part[0], part[1]
	r := request{method: http.MethodGet, url: b.url(h)}
	switch {
	case offset < 0 || length < 0 || offset+length < 0:
		return backend.Permanent(fmt.Errorf("bytes %d+%d", offset, length))
	case length > 0:
		r.ranged = fmt.Sprintf("bytes=%d-%d", offset, offset+length-1)
	case offset > 0:
		r.ranged = fmt.Sprintf("bytes=%d-", offset)
	}
	resp, err := b.do(ctx, r)
	if err != nil {
		return err
	}
	defer discard(resp)
	begins, size := int64(0), resp.ContentLength
	switch resp.StatusCode {
	case http.StatusOK: // all of it, also from servers that know no ranges
	case http.StatusPartialContent:
		if begins, size, err = parseContentRange(resp.Header.Get("Content-Range")); err != nil {
			return err
		}
	default:
		return statusError(resp)
	}
	if size < 0 {
		info, err := b.Stat(ctx, h)
		if err != nil {
			return err
		}
		size = info.Size
	}
	n, err := backend.CheckRange(offset, length, size)
	if err != nil {
		return err
	}
	if begins > offset {
		return fmt.Errorf("server sends bytes from %d, asked for %d", begins, offset)
	}
	if _, err := io.CopyN(io.Discard, resp.Body, offset-begins); err != nil {
		return err
	}
	return backend.Deliver(ctx, resp.Body, n, fn)
}

// parseContentRange reads "bytes begin-end/size". size is -1 if the server does not tell.
func parseContentRange(s string) (begin, size int64, err error) {
	rest, ok := strings.CutPrefix(s, "bytes ")
	span, total, ok2 := strings.Cut(rest, "/")
	first, _, ok3 := strings.Cut(span, "-")
	if !ok || !ok2 || !ok3 {
		return 0, 0, fmt.Errorf("server sends Content-Range %q", s)
	}
	if begin, err = strconv.ParseInt(first, 10, 64); err != nil || begin < 0 {
		return 0, 0, fmt.Errorf("server sends Content-Range %q", s)
	}
	if total == "*" {
		return begin, -1, nil
	}
	if size, err = strconv.ParseInt(total, 10, 64); err != nil || size < 0 {
		return 0, 0, fmt.Errorf("server sends Content-Range %q", s)
	}
	return begin, size, nil
}

// Stat tells a file's size.
func (b *Backend) Stat(ctx context.Context, h backend.Handle) (backend.FileInfo, error) {
	if err := begin(ctx, h); err != nil {
		return backend.FileInfo{}, err
	}
	resp, err := b.do(ctx, request{method: http.MethodHead, url: b.url(h)})
	if err == nil {
		err = finish(resp, http.StatusOK)
	}
	if err == nil && resp.ContentLength < 0 {
		err = errors.New("server does not tell the length")
	}
	if err != nil {
		return backend.FileInfo{}, fmt.Errorf("stat %s: %w", h, err)
	}
	return backend.FileInfo{Name: h.Name, Size: resp.ContentLength}, nil
}

// List tells the files of a type.
func (b *Backend) List(ctx context.Context, t restic.FileType, fn func(backend.FileInfo) error) error {
	if t == restic.ConfigFile {
		return backend.Permanent(errors.New("list config: it is one file, not a directory"))
	}
	resp, err := b.do(ctx, request{method: http.MethodGet, url: b.base + string(t) + "/", accept: typeV2})
	if err != nil {
		return fmt.Errorf("list %s: %w", t, err)
	}
	defer discard(resp)
	switch resp.StatusCode {
	case http.StatusOK:
	case http.StatusNotFound:
		return nil
	default:
		return fmt.Errorf("list %s: %w", t, statusError(resp))
	}
	if media, _, _ := mime.ParseMediaType(resp.Header.Get("Content-Type")); media == typeV2 {
		err = listV2(ctx, resp.Body, fn)
	} else {
		err = b.listV1(ctx, t, resp.Body, fn)
	}
	if err != nil {
		return fmt.Errorf("list %s: %w", t, err)
	}
	return nil
}

func listV2(ctx context.Context, body io.Reader, fn func(backend.FileInfo) error) error {
	return decodeArray(ctx, body, func(dec *json.Decoder) error {
		var item struct {
			Name string `json:"name"`
			Size int64  `json:"size"`
		}
		if err := dec.Decode(&item); err != nil {
			return err
		}
		if !backend.IsName(item.Name) {
			return nil
		}
		if item.Size < 0 {
			return backend.Permanent(fmt.Errorf("listing says that %s has %d bytes", item.Name, item.Size))
		}
		return fn(backend.FileInfo{Name: item.Name, Size: item.Size})
	})
}

// listV1 asks for each file's size, as many at once as there are connections.
func (b *Backend) listV1(ctx context.Context, t restic.FileType, body io.Reader, fn func(backend.FileInfo) error) error {
	var infos []backend.FileInfo
	err := decodeArray(ctx, body, func(dec *json.Decoder) error {
		var name string
		if err := dec.Decode(&name); err != nil {
			return err
		}
		if backend.IsName(name) {
			infos = append(infos, backend.FileInfo{Name: name})
		}
		return nil
	})
	if err != nil {
		return err
	}
	const removed = -1 // since the listing was made
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(b.cfg.Connections)
	for i := range infos {
		g.Go(func() error {
			info, err := b.Stat(gctx, backend.Handle{Type: t, Name: infos[i].Name})
			if errors.Is(err, backend.ErrNotExist) {
				infos[i].Size = removed
				return nil
			}
			infos[i].Size = info.Size
			return err
		})
	}
	if err := g.Wait(); err != nil {
		return err
	}
	for _, info := range infos {
		if info.Size == removed {
			continue
		}
		if err := fn(info); err != nil {
			return err
		}
	}
	return nil
}

// decodeArray calls item for each element of a JSON array. null is an empty array: some servers say so.
func decodeArray(ctx context.Context, body io.Reader, item func(*json.Decoder) error) error {
	quota := &quotaReader{body, itemLimit}
	dec := json.NewDecoder(quota)
	switch first, err := dec.Token(); {
	case err != nil:
		return fmt.Errorf("answer is no listing: %w", err)
	case first == nil:
		return nil
	case first != json.Delim('['):
		return fmt.Errorf("answer is no listing: it begins with %v", first)
	}
	for dec.More() {
		if err := context.Cause(ctx); err != nil {
			return err
		}
		quota.left = itemLimit
		if err := item(dec); err != nil {
			return err
		}
	}
	_, err := dec.Token() // the end must be there, or the listing was cut off
	return err
}

// itemLimit is far beyond any honest item of a listing, in bytes; a hostile one would fill the memory.
const itemLimit = 1 << 20

// quotaReader fails when more than left bytes are read of it before somebody raises left again.
type quotaReader struct {
	r    io.Reader
	left int
}

func (q *quotaReader) Read(p []byte) (int, error) {
	if q.left <= 0 {
		return 0, backend.Permanent(fmt.Errorf("listing has an item of more than %d bytes", itemLimit))
	}
	n, err := q.r.Read(p[:min(len(p), q.left)])
	q.left -= n
	return n, err
}

// Remove deletes a file. Append-only servers refuse that, except for locks.
func (b *Backend) Remove(ctx context.Context, h backend.Handle) error {
	if err := begin(ctx, h); err != nil {
		return err
	}
	resp, err := b.do(ctx, request{method: http.MethodDelete, url: b.url(h)})
	if err == nil {
		err = finish(resp, http.StatusOK)
	}
	if err == nil || (resp != nil && resp.StatusCode == http.StatusNoContent) {
		return nil
	}
	if resp != nil && (resp.StatusCode == http.StatusForbidden || resp.StatusCode == http.StatusMethodNotAllowed) {
		err = fmt.Errorf("%w: %w", err, backend.ErrReadOnly)
	}
	return fmt.Errorf("remove %s: %w", h, err)
}

// Connections is the figure given at Open.
func (b *Backend) Connections() int { return b.cfg.Connections }

// Location is the URL without credentials.
func (b *Backend) Location() string { return "rest:" + b.base }

// Close closes idle connections.
func (b *Backend) Close() error {
	b.client.CloseIdleConnections()
	return nil
}

func begin(ctx context.Context, h backend.Handle) error {
	if err := h.Check(); err != nil {
		return err
	}
	return context.Cause(ctx)
}

// Retained is not known here.
func (*Backend) Retained(context.Context, backend.Handle) (time.Time, error) { return time.Time{}, nil }
