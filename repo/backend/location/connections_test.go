package location_test

import (
	"context"
	"io"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/vmkeep/vmkeep/repo/backend/backendtest"
	"github.com/vmkeep/vmkeep/repo/backend/backendtest/peers"
	"github.com/vmkeep/vmkeep/repo/backend/location"
	"github.com/vmkeep/vmkeep/repo/restic"
)

// crowd counts the downloads of packs that a server works on at once. It lets none end before there were as many as are awaited.
type crowd struct {
	mu           sync.Mutex
	inside, peak int
	awaited      int
	complete     chan struct{}
}

func (c *crowd) enter() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.inside++
	if c.peak < c.awaited && c.inside == c.awaited {
		close(c.complete)
	}
	c.peak = max(c.peak, c.inside)
}

func (c *crowd) leave() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.inside--
}

// before puts the crowd's counter in front of the peer's server.
func (c *crowd) before(t *testing.T, p peers.Peer) peers.Peer {
	t.Helper()
	service, address, _ := strings.Cut(p.Location, ":")
	target, err := url.Parse(address)
	if err != nil {
		t.Fatal(err)
	}
	proxy := httputil.NewSingleHostReverseProxy(&url.URL{Scheme: target.Scheme, Host: target.Host})
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodGet && strings.Contains(r.URL.Path, "/data/") {
			c.enter()
			defer c.leave()
			select {
			case <-c.complete:
			case <-r.Context().Done():
			}
		}
		proxy.ServeHTTP(w, r) // with the client's Host, which S3's signatures cover
	}))
	t.Cleanup(server.Close)
	target.Host = strings.TrimPrefix(server.URL, "http://")
	p.Location = service + ":" + target.String()
	return p
}

func TestServersSeeAsManyRequestsAtOnceAsAreAllowed(t *testing.T) {
	const loads = 24
	for _, service := range []string{"rest", "s3"} {
		for option, want := range map[string]int{"2": 2, "7": 7} {
			t.Run(service+".connections="+option, func(t *testing.T) {
				t.Parallel()
				c := &crowd{awaited: want, complete: make(chan struct{})}
				p := c.before(t, places[service](t))
				s := settings(p)
				s.Options = map[string]string{service + ".connections": option}
				b, err := location.Create(t.Context(), parse(t, p.Location), s)
				if err != nil {
					t.Fatal(err)
				}
				defer b.Close()
				if b.Connections() != want {
					t.Errorf("Connections() = %d", b.Connections())
				}
				data := backendtest.Bytes(1000)
				h := backendtest.HandleOf(restic.PackFile, data)
				if err := b.Save(t.Context(), h, data); err != nil {
					t.Fatal(err)
				}
				ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
				defer cancel()
				g, ctx := errgroup.WithContext(ctx)
				for range loads {
					g.Go(func() error {
						return b.Load(ctx, h, 0, 0, func(r io.Reader) error {
							_, err := io.Copy(io.Discard, r)
							return err
						})
					})
				}
				if err := g.Wait(); err != nil {
					t.Errorf("there never were %d requests at once: %v", want, err)
				}
				if c.peak != want {
					t.Errorf("%d requests at once", c.peak)
				}
			})
		}
	}
}
