package rest_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"github.com/vmkeep/vmkeep/repo/backend"
	"github.com/vmkeep/vmkeep/repo/backend/backendtest"
	"github.com/vmkeep/vmkeep/repo/backend/rest"
	"github.com/vmkeep/vmkeep/repo/restic"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// serve answers with handler.
func serve(t *testing.T, handler http.HandlerFunc) *rest.Backend {
	t.Helper()
	server := httptest.NewServer(handler)
	t.Cleanup(server.Close)
	u, err := url.Parse(server.URL)
	if err != nil {
		t.Fatal(err)
	}
	b, err := rest.Open(rest.Config{URL: u, Transport: &http.Transport{}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = b.Close() })
	return b
}

func load(ctx context.Context, b backend.Backend, h backend.Handle, part [2]int64) (got []byte, err error) {
	err = b.Load(ctx, h, part[0], part[1], func(r io.Reader) (err error) {
		got, err = io.ReadAll(r)
		return err
	})
	return got, err
}

func TestServerThatKnowsNoRanges(t *testing.T) {
	data := backendtest.Bytes(10_000)
	h := backendtest.HandleOf(restic.PackFile, data)
	b := serve(t, func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodHead { // a GET of this size goes out without its length
			w.Header().Set("Content-Length", fmt.Sprint(len(data)))
			return
		}
		_, _ = w.Write(data)
	})
	for _, part := range [][2]int64{{0, 0}, {0, 100}, {5000, 0}, {9000, 1000}} {
		got, err := load(t.Context(), b, h, part)
		want := data[part[0]:]
		if part[1] > 0 {
			want = want[:part[1]]
		}
		if err != nil || !bytes.Equal(got, want) {
			t.Errorf("%v: %d bytes, %v", part, len(got), err)
		}
	}
	if _, err := load(t.Context(), b, h, [2]int64{9000, 1001}); !errors.Is(err, backend.ErrPermanent) {
		t.Errorf("range beyond the end: %v", err)
	}
}

func TestServerThatLies(t *testing.T) {
	data := backendtest.Bytes(1000)
	h := backendtest.HandleOf(restic.PackFile, data)
	for name, answer := range map[string]func(http.ResponseWriter){
		"other range": func(w http.ResponseWriter) {
			w.Header().Set("Content-Range", "bytes 200-299/1000")
			w.WriteHeader(http.StatusPartialContent)
			_, _ = w.Write(data[200:300])
		},
		"no range told": func(w http.ResponseWriter) {
			w.WriteHeader(http.StatusPartialContent)
			_, _ = w.Write(data[100:200])
		},
		"nonsense": func(w http.ResponseWriter) {
			w.Header().Set("Content-Range", "bytes ten-twenty/lots")
			w.WriteHeader(http.StatusPartialContent)
		},
		"too short": func(w http.ResponseWriter) {
			w.Header().Set("Content-Range", "bytes 100-199/1000")
			w.WriteHeader(http.StatusPartialContent)
			_, _ = w.Write(data[100:150])
		},
		"cut off": func(w http.ResponseWriter) {
			w.Header().Set("Content-Range", "bytes 100-199/1000")
			w.Header().Set("Content-Length", "100")
			w.WriteHeader(http.StatusPartialContent)
			_, _ = w.Write(data[100:150])
			panic(http.ErrAbortHandler)
		},
	} {
		t.Run(name, func(t *testing.T) {
			b := serve(t, func(w http.ResponseWriter, _ *http.Request) { answer(w) })
			if got, err := load(t.Context(), b, h, [2]int64{100, 100}); err == nil {
				t.Errorf("%d bytes without an error", len(got))
			}
		})
	}
}

func TestListingsOfBothVersions(t *testing.T) {
	names := []string{strings.Repeat("a", 64), strings.Repeat("b", 64), strings.Repeat("c", 64)}
	for version, body := range map[string]string{
		"v1": fmt.Sprintf(`["%s","README","%s","%s"]`, names[0], names[1], names[2]),
		"v2": fmt.Sprintf(`[{"name":"%s","size":1000},{"name":"x-tmp-1","size":3},{"name":"%s","size":1001},{"size":1002,"more":{},"name":"%s"}]`, names[0], names[1], names[2]),
	} {
		b := serve(t, func(w http.ResponseWriter, r *http.Request) {
			for i, name := range names {
				if r.URL.Path == "/data/"+name && r.Method == http.MethodHead {
					if version == "v1" && i == 2 {
						http.NotFound(w, r) // removed since
						return
					}
					w.Header().Set("Content-Length", fmt.Sprint(1000+i))
					return
				}
			}
			if r.Header.Get("Accept") != "application/vnd.x.restic.rest.v2" || r.URL.Path != "/data/" {
				t.Errorf("asked %s for %s", r.Header.Get("Accept"), r.URL)
			}
			if version == "v2" {
				w.Header().Set("Content-Type", "application/vnd.x.restic.rest.v2; charset=utf-8")
			}
			_, _ = io.WriteString(w, body)
		})
		var got []string
		err := b.List(t.Context(), restic.PackFile, func(info backend.FileInfo) error {
			got = append(got, fmt.Sprintf("%c%d", info.Name[0], info.Size))
			return nil
		})
		want := "a1000 b1001 c1002"
		if version == "v1" {
			want = "a1000 b1001"
		}
		if err != nil || strings.Join(got, " ") != want {
			t.Errorf("%s: %v, %v; want %s", version, got, err, want)
		}
	}
}

func TestListingThatIsCutOffIsAnError(t *testing.T) {
	whole := fmt.Sprintf(`[{"name":"%s","size":1}]`, strings.Repeat("a", 64))
	for n := range len(whole) {
		b := serve(t, func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "application/vnd.x.restic.rest.v2")
			_, _ = io.WriteString(w, whole[:n])
		})
		if err := b.List(t.Context(), restic.PackFile, func(backend.FileInfo) error { return nil }); err == nil {
			t.Fatalf("%q is taken for a whole listing", whole[:n])
		}
	}
	for body, want := range map[string]bool{"null": true, "[]": true, "{}": false, "7": false, "<html>": false} {
		b := serve(t, func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, body) })
		if err := b.List(t.Context(), restic.PackFile, func(backend.FileInfo) error { return nil }); (err == nil) != want {
			t.Errorf("%s: %v", body, err)
		}
	}
}

func TestListingOfALieAsLongAsTheMemoryIsRefused(t *testing.T) {
	for _, head := range []string{`["`, `[{"name":"`, `[{"`, `[                                     {"x":"`} {
		b := serve(t, func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "application/vnd.x.restic.rest.v2")
			_, _ = io.WriteString(w, head)
			for range 16 << 10 {
				if _, err := w.Write(bytes.Repeat([]byte("a"), 1<<10)); err != nil {
					return
				}
			}
		})
		err := b.List(t.Context(), restic.PackFile, func(backend.FileInfo) error { return nil })
		if !errors.Is(err, backend.ErrPermanent) || !strings.Contains(err.Error(), "more than") {
			t.Errorf("%s...: %v", head, err)
		}
	}
	// A long listing of short items is fine.
	names := 0
	b := serve(t, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/vnd.x.restic.rest.v2")
		sep := "["
		for i := range 30_000 {
			fmt.Fprintf(w, `%s{"name":"%064x","size":1}`, sep, i)
			sep = ","
		}
		_, _ = io.WriteString(w, "]")
	})
	if err := b.List(t.Context(), restic.PackFile, func(backend.FileInfo) error { names++; return nil }); err != nil || names != 30_000 {
		t.Errorf("%d names, %v", names, err)
	}
}

// A server that writes in place leaves half a file when an upload breaks. The half must go, or the name is lost.
func TestHalfAnUploadIsDroppedAndSavedAgain(t *testing.T) {
	data := backendtest.Bytes(5000)
	h := backendtest.HandleOf(restic.PackFile, data)
	var stored atomic.Pointer[[]byte]
	var posts, deletes atomic.Int32
	b := serve(t, func(w http.ResponseWriter, r *http.Request) {
		switch r.Method {
		case http.MethodHead:
			if p := stored.Load(); p != nil {
				w.Header().Set("Content-Length", fmt.Sprint(len(*p)))
				return
			}
			http.NotFound(w, r)
		case http.MethodDelete:
			deletes.Add(1)
			stored.Store(nil)
		case http.MethodPost:
			body, err := io.ReadAll(r.Body)
			if err != nil {
				t.Error(err)
			}
			if posts.Add(1) == 1 {
				half := body[:2500]
				stored.Store(&half)
				w.WriteHeader(http.StatusBadGateway)
				return
			}
			stored.Store(&body)
		}
	})
	err := backend.Retry(b, backend.Policy{Initial: time.Millisecond}).Save(t.Context(), h, data)
	if err != nil || !bytes.Equal(*stored.Load(), data) || posts.Load() != 2 || deletes.Load() != 1 {
		t.Errorf("%v after %d uploads and %d deletions", err, posts.Load(), deletes.Load())
	}
}

func TestStatusesMeanWhatTheyAre(t *testing.T) {
	h := backendtest.HandleOf(restic.PackFile, []byte("x"))
	for status, want := range map[int]error{
		http.StatusNotFound: backend.ErrNotExist, http.StatusUnauthorized: backend.ErrPermanent, http.StatusForbidden: backend.ErrPermanent,
		http.StatusRequestedRangeNotSatisfiable: backend.ErrPermanent, http.StatusInsufficientStorage: backend.ErrPermanent,
		http.StatusTooManyRequests: nil, http.StatusInternalServerError: nil, http.StatusBadGateway: nil, http.StatusServiceUnavailable: nil,
	} {
		b := serve(t, func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "the reason\nmore", status) })
		_, err := load(t.Context(), b, h, [2]int64{})
		if err == nil || (want != nil && !errors.Is(err, want)) || (want == nil && (errors.Is(err, backend.ErrPermanent) || errors.Is(err, backend.ErrNotExist))) {
			t.Errorf("%d: %v, want %v", status, err, want)
		}
		if err != nil && !strings.Contains(err.Error(), "the reason") {
			t.Errorf("%d: %v does not tell the server's reason", status, err)
		}
		if err := b.Remove(t.Context(), h); errors.Is(err, backend.ErrReadOnly) != (status == http.StatusForbidden) {
			t.Errorf("Remove, %d: %v", status, err)
		}
	}
}

func TestOneSaverOfAFileAtATime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var inside atomic.Int32
		var stored atomic.Bool
		u, _ := url.Parse("http://host/")
		b, err := rest.Open(rest.Config{URL: u, Transport: roundTrip(func(r *http.Request) int {
			if r.Method == http.MethodHead {
				if stored.Load() {
					return http.StatusOK
				}
				return http.StatusNotFound
			}
			if inside.Add(1) != 1 {
				t.Error("two uploads of one file at once")
			}
			time.Sleep(time.Minute) // of the bubble's time
			inside.Add(-1)
			stored.Store(true)
			return http.StatusOK
		})})
		if err != nil {
			t.Fatal(err)
		}
		h := backendtest.HandleOf(restic.PackFile, nil)
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		done := make(chan error, 2)
		go func() { done <- b.Save(t.Context(), h, nil) }()
		synctest.Wait()
		go func() { done <- b.Save(t.Context(), h, nil) }()
		if err := b.Save(ctx, h, nil); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("waiting saver: %v", err)
		}
		if err := errors.Join(<-done, <-done); err != nil {
			t.Error(err)
		}
	})
}

type roundTrip func(*http.Request) int

func (f roundTrip) RoundTrip(r *http.Request) (*http.Response, error) {
	status := f(r)
	return &http.Response{StatusCode: status, Status: http.StatusText(status), Body: http.NoBody, Request: r}, nil
}
