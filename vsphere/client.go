package vsphere

import (
	"context"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"path"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/vmware/govmomi/vim25"
	"github.com/vmware/govmomi/vim25/methods"
	"github.com/vmware/govmomi/vim25/mo"
	"github.com/vmware/govmomi/vim25/soap"
	"github.com/vmware/govmomi/vim25/types"
)

// Client is a session with a vCenter or an ESXi host. It is safe for concurrent use and has to be closed.
type Client struct {
	s       *session
	vim     *vim25.Client
	about   About
	log     *slog.Logger
	cleanup time.Duration

	poll     func(attempt int) time.Duration // distance of looks at a task
	busyWait time.Duration                   // how long to wait for other people's tasks on a machine

	stop context.CancelFunc // ends the keep-alive
	done sync.WaitGroup
	once sync.Once
}

// Dial connects, checks the certificate and logs in. ctx bounds only the dialing, not the session.
func Dial(ctx context.Context, cfg Config) (*Client, error) {
	u, user, err := cfg.address()
	if err != nil {
		return nil, err
	}
	dialer, err := newTLSDialer(cfg, u)
	if err != nil {
		return nil, err
	}
	sc := soap.NewClient(u, cfg.Insecure)
	sc.Namespace, sc.Version = "urn:"+vim25.Namespace, vim25.Version
	sc.UserAgent = orText(cfg.UserAgent, "vmkeep")
	t := sc.DefaultTransport()
	t.DialTLSContext = dialer.dial
	t.TLSClientConfig = dialer.config(u.Hostname(), dialer.server) // for connections through a proxy
	t.MaxIdleConnsPerHost = idleConnections
	t.ResponseHeaderTimeout = 0 // every call has its deadline
	s := &session{
		soap: sc, user: user, jar: newJar(), log: cfg.Log,
		callTimeout: orDuration(cfg.CallTimeout, 2*time.Minute),
		backoff:     defaultBackoff,
		login1:      make(chan struct{}, 1),
	}
	sc.Jar = s.jar
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	// A server that does not answer the first call is not worth patience: the address may be wrong.
	if err := s.greet(ctx); err != nil {
		sc.CloseIdleConnections()
		return nil, err
	}
	if err := s.negotiate(ctx, cfg.APIVersion); err != nil {
		sc.CloseIdleConnections()
		return nil, err
	}
	if err := s.login(ctx, 0); err != nil {
		sc.CloseIdleConnections()
		return nil, err
	}
	s.patience = orDuration(cfg.Patience, 5*time.Minute)

	c := &Client{s: s, vim: s.client(), log: s.log, cleanup: orDuration(cfg.Cleanup, time.Hour),
		poll: defaultPoll, busyWait: 10 * time.Minute}
	a := s.content.About
	c.about = About{URL: u.String(), Product: a.FullName, Version: a.Version, Build: a.Build, APIVersion: a.ApiVersion,
		VCenter: c.vim.IsVC(), InstanceUUID: a.InstanceUuid}
	if p := dialer.seen.Load(); p != nil {
		c.about.Thumbprint, c.about.ThumbprintSHA1 = p.sha256, p.sha1
	}
	if c.about.InstanceUUID == "" {
		if c.about.InstanceUUID, err = c.hardwareUUID(ctx); err != nil {
			s.logout(ctx)
			return nil, err
		}
	}
	life, stop := context.WithCancel(context.Background())
	c.stop = stop
	c.done.Add(1)
	go c.keepAlive(life, orDuration(cfg.KeepAlive, 5*time.Minute))
	return c, nil
}

// greet asks for the service content, the one call that needs no session.
func (s *session) greet(ctx context.Context) error {
	host := s.soap.URL().Host
	req := methods.RetrieveServiceContentBody{Req: &types.RetrieveServiceContent{This: vim25.ServiceInstance}}
	var res methods.RetrieveServiceContentBody
	err := s.once(ctx, &req, &res)
	if err == nil && (res.Res == nil || res.Res.Returnval.SessionManager == nil || res.Res.Returnval.PropertyCollector.Value == "") {
		err = errors.New("the answer is not that of a vSphere server")
	}
	if err == nil {
		s.content = res.Res.Returnval
		return nil
	}
	if errors.Is(ctx.Err(), context.Canceled) {
		return fmt.Errorf("connect to %s: %w", host, context.Cause(ctx))
	}
	if ctx.Err() != nil {
		return &Error{Kind: ErrUnreachable, Object: host, Summary: host + " does not answer in time", Err: context.Cause(ctx),
			Remedy: "check that the server is up and that port 443 is reachable from here"}
	}
	var e *Error
	if errors.As(err, &e) {
		return e
	}
	if transient(err) && httpStatus(err) == 0 && !strings.Contains(err.Error(), "XML syntax error") {
		return s.explain("RetrieveServiceContent", err)
	}
	if httpStatus(err) == http.StatusServiceUnavailable || httpStatus(err) == http.StatusBadGateway {
		return &Error{Kind: ErrUnreachable, Object: host, Summary: host + " is not ready", Err: err, Remedy: "the vCenter may be starting: try again in some minutes"}
	}
	return &Error{Kind: ErrNotVSphere, Object: host, Summary: host + " is not a vCenter or ESXi server", Err: err,
		Remedy: "check host and port; vSphere answers at https://<host>/sdk"}
}

// negotiate lets the server say which API version it speaks. Older servers refuse requests of versions they do not know.
func (s *session) negotiate(ctx context.Context, highest string) error {
	u := s.soap.URL()
	u.Path = path.Join("/sdk", "vimServiceVersions.xml")
	ctx, cancel := context.WithTimeout(ctx, s.callTimeout)
	defer cancel()
	req, err := http.NewRequest(http.MethodGet, u.String(), nil)
	if err != nil {
		return err
	}
	var v struct {
		Namespace []struct {
			Name    string `xml:"name"`
			Version string `xml:"version"`
		} `xml:"namespace"`
	}
	err = s.soap.Do(ctx, req, func(res *http.Response) error {
		if res.StatusCode != http.StatusOK {
			return errors.New(res.Status)
		}
		return xml.NewDecoder(io.LimitReader(res.Body, 1<<20)).Decode(&v)
	})
	if ctx.Err() != nil {
		return fmt.Errorf("vimServiceVersions.xml: %w", context.Cause(ctx))
	}
	if err == nil { // without the file the client's own version is tried
		for _, n := range v.Namespace {
			if n.Name == s.soap.Namespace && n.Version != "" && versionLess(n.Version, s.soap.Version) {
				s.soap.Version = n.Version
			}
		}
	}
	if highest != "" && versionLess(highest, s.soap.Version) {
		s.soap.Version = highest
	}
	return nil
}

// versionLess compares dotted numbers.
func versionLess(a, b string) bool {
	x, y := strings.Split(a, "."), strings.Split(b, ".")
	for i := range max(len(x), len(y)) {
		var m, n int
		if i < len(x) {
			m, _ = strconv.Atoi(x[i])
		}
		if i < len(y) {
			n, _ = strconv.Atoi(y[i])
		}
		if m != n {
			return m < n
		}
	}
	return false
}

// hardwareUUID identifies an ESXi host, which has no instance UUID.
func (c *Client) hardwareUUID(ctx context.Context) (string, error) {
	var hosts []mo.HostSystem
	if err := c.all(ctx, "HostSystem", []string{"hardware.systemInfo.uuid"}, &hosts); err != nil {
		return "", fmt.Errorf("identify the host: %w", err)
	}
	for _, h := range hosts {
		if h.Hardware != nil && h.Hardware.SystemInfo.Uuid != "" {
			return h.Hardware.SystemInfo.Uuid, nil
		}
	}
	return "", nil
}

// Close logs out and ends the keep-alive. It has its own deadline and is safe to call twice.
func (c *Client) Close() error {
	c.once.Do(func() {
		c.stop()
		c.done.Wait()
		ctx, cancel := context.WithTimeout(context.Background(), 15*time.Second)
		defer cancel()
		c.s.logout(ctx)
	})
	return nil
}

// About is what the server said of itself at login.
func (c *Client) About() About { return c.about }

// Now is the server's clock.
func (c *Client) Now(ctx context.Context) (time.Time, error) {
	t, err := methods.GetCurrentTime(ctx, c.vim)
	if err != nil {
		return time.Time{}, err
	}
	return *t, nil
}

// keepAlive calls the server now and then. A dead session is noticed, and replaced, by the call itself.
func (c *Client) keepAlive(ctx context.Context, every time.Duration) {
	defer c.done.Done()
	t := time.NewTicker(every)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
			if _, err := c.Now(ctx); err != nil && ctx.Err() == nil {
				c.log.Warn("vSphere keep-alive failed", "error", err)
			}
		}
	}
}

// afterwards is the context of a cleanup: it outlives ctx, with its own deadline.
func (c *Client) afterwards(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.WithoutCancel(ctx), c.cleanup)
}

func orDuration(d, instead time.Duration) time.Duration {
	if d == 0 {
		return instead
	}
	return d
}
