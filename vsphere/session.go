package vsphere

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/cookiejar"
	"net/url"
	"reflect"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/vmware/govmomi/fault"
	"github.com/vmware/govmomi/vim25"
	"github.com/vmware/govmomi/vim25/methods"
	"github.com/vmware/govmomi/vim25/soap"
	"github.com/vmware/govmomi/vim25/types"
)

// session carries every call: it bounds it in time, repeats it where that is safe, and logs in again when the
// session has ended. It is the RoundTripper of the vim25 client.
//
// A vCenter session ends 30 minutes after its last call, with the vCenter, and with its token after 24 hours at the
// latest; reads over NFC do not count as calls.
type session struct {
	soap *soap.Client
	user *url.Userinfo
	jar  *jar
	log  *slog.Logger

	content types.ServiceContent

	callTimeout time.Duration
	patience    time.Duration
	backoff     func(attempt int) time.Duration

	login1 chan struct{} // holds one token: who has it may log in
	mu     sync.Mutex
	logins uint64 // sessions so far; a call that began before the newest one may simply be repeated
	closed bool
}

// jar keeps cookies and can forget them: a login must not carry the cookie of a dead session.
type jar struct {
	mu sync.Mutex
	j  *cookiejar.Jar
}

func newJar() *jar {
	j, _ := cookiejar.New(nil) // fails only for options
	return &jar{j: j}
}

func (j *jar) SetCookies(u *url.URL, c []*http.Cookie) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.j.SetCookies(u, c)
}

func (j *jar) Cookies(u *url.URL) []*http.Cookie {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.j.Cookies(u)
}

func (j *jar) clear() {
	n, _ := cookiejar.New(nil)
	j.mu.Lock()
	defer j.mu.Unlock()
	j.j = n
}

// methodName is the API's name of the call in a request body: "RetrievePropertiesEx".
func methodName(req soap.HasFault) string {
	t := reflect.TypeOf(req)
	for t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	return strings.ToUpper(t.Name()[:1]) + strings.TrimSuffix(t.Name()[1:], "Body")
}

// repeatable calls leave nothing behind, or nothing worse, when they are executed twice because the first answer was
// lost. A removal or a power operation that was done already fails with a fault that its caller understands.
func repeatable(method string) bool {
	for _, prefix := range []string{"Retrieve", "Query", "Find", "Has", "Fetch", "Current", "Nfc", "Login", "Logout",
		"CreateContainerView", "DestroyView", "EnableMethods", "DisableMethods", "SearchDatastore",
		"RemoveSnapshot_Task", "ConsolidateVMDisks_Task", "Destroy_Task", "PowerOnVM_Task", "PowerOffVM_Task"} {
		if strings.HasPrefix(method, prefix) {
			return true
		}
	}
	return false
}

// RoundTrip implements soap.RoundTripper.
func (s *session) RoundTrip(ctx context.Context, req, res soap.HasFault) error {
	method := methodName(req)
	began := time.Now()
	relogins := 0
	for attempt := 0; ; attempt++ {
		n, closed := s.generation()
		if closed && method != "Logout" {
			return &Error{Kind: ErrClosed, Summary: method + ": the vSphere client is closed"}
		}
		err := s.once(ctx, req, res)
		if err == nil {
			return nil
		}
		if ctx.Err() != nil {
			return fmt.Errorf("%s: %w", method, context.Cause(ctx))
		}
		switch {
		case fault.Is(err, &types.NotAuthenticated{}) && method != "Login" && method != "Logout" && relogins < 3:
			relogins++
			s.log.Debug("vSphere session ended, logging in again", "method", method)
			if err := s.login(ctx, n); err != nil {
				return err
			}
		case transient(err) && (repeatable(method) || dialFailed(err)) && time.Since(began) < s.patience:
			s.log.Debug("vSphere call failed, repeating", "method", method, "attempt", attempt+1, "error", err)
			if err := sleep(ctx, s.backoff(attempt)); err != nil {
				return fmt.Errorf("%s: %w", method, err)
			}
		default:
			return s.explain(method, err)
		}
		// Half an answer may have been decoded; decoding into it again would append to its slices.
		reflect.ValueOf(res).Elem().SetZero()
	}
}

// once makes the call with its own deadline.
func (s *session) once(ctx context.Context, req, res soap.HasFault) error {
	ctx, cancel := context.WithTimeout(ctx, s.callTimeout)
	defer cancel()
	return s.soap.RoundTrip(ctx, req, res)
}

func (s *session) generation() (uint64, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.logins, s.closed
}

// login makes a new session unless one was made since generation seen.
func (s *session) login(ctx context.Context, seen uint64) error {
	select {
	case s.login1 <- struct{}{}:
		defer func() { <-s.login1 }()
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	if n, closed := s.generation(); n != seen || closed {
		return nil // the repeated call finds out
	}
	s.jar.clear()
	password, _ := s.user.Password()
	req := methods.LoginBody{Req: &types.Login{This: *s.content.SessionManager, UserName: s.user.Username(), Password: password}}
	var res methods.LoginBody
	if err := s.RoundTrip(ctx, &req, &res); err != nil {
		return err
	}
	s.mu.Lock()
	s.logins++
	s.mu.Unlock()
	return nil
}

// logout ends the session; errors do not matter to anybody, a session that cannot be ended times out.
func (s *session) logout(ctx context.Context) {
	s.mu.Lock()
	was := s.closed
	s.closed = true
	s.mu.Unlock()
	if was {
		return
	}
	if s.content.SessionManager != nil {
		req := methods.LogoutBody{Req: &types.Logout{This: *s.content.SessionManager}}
		var res methods.LogoutBody
		if err := s.once(ctx, &req, &res); err != nil && !fault.Is(err, &types.NotAuthenticated{}) {
			s.log.Debug("vSphere logout failed", "error", err)
		}
	}
	s.soap.CloseIdleConnections()
}

// transient reports whether the server, or the way to it, was in a state that passes.
func transient(err error) bool {
	var e *Error
	if errors.As(err, &e) && e.Kind != ErrUnreachable {
		return false // a wrong certificate does not become right
	}
	if dialFailed(err) {
		return true
	}
	var ne net.Error
	switch {
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF),
		errors.Is(err, syscall.ECONNRESET), errors.Is(err, syscall.EPIPE), errors.Is(err, syscall.ECONNREFUSED),
		errors.Is(err, context.DeadlineExceeded): // of the call: RoundTrip has checked the caller's own
		return true
	case errors.As(err, &ne) && ne.Timeout():
		return true
	}
	switch httpStatus(err) {
	case http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout, http.StatusTooManyRequests:
		return true
	}
	text := err.Error()
	return strings.Contains(text, "unexpected EOF") || // the XML decoder's is its own type
		strings.Contains(text, "server closed idle connection") || strings.Contains(text, "connection reset by peer") ||
		fault.Is(err, &types.HostCommunication{}) || fault.Is(err, &types.HostNotReachable{})
}

// httpStatus is the HTTP status that govmomi wrapped into err, or 0: it keeps it in a private type whose text is
// the status line.
func httpStatus(err error) int {
	var ue *url.Error
	if !errors.As(err, &ue) || ue.Err == nil {
		return 0
	}
	var code int
	if n, _ := fmt.Sscanf(ue.Err.Error(), "%d ", &code); n == 1 && code >= 100 && code < 600 {
		return code
	}
	return 0
}

// defaultBackoff waits 0.2, 0.4, ... 10 seconds, spread by a quarter so that many clients do not return at once.
func defaultBackoff(attempt int) time.Duration {
	d := min(200*time.Millisecond<<min(attempt, 10), 10*time.Second)
	return d - time.Duration(rand.Int64N(int64(d)/4+1))
}

func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// client wraps the session as govmomi wants it.
func (s *session) client() *vim25.Client {
	return &vim25.Client{Client: s.soap, ServiceContent: s.content, RoundTripper: s}
}
