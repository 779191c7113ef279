package lab

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"reflect"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/soap"
	"github.com/vmware/govmomi/vim25/types"
	"github.com/vmware/govmomi/vim25/xml"
)

// The front of /sdk: every call passes here before the simulator sees it. It is recorded, may meet an injected
// fault, and a few methods that the simulator has no types for are answered on the spot.

// Call is a call that was made, whether it was answered or not.
type Call struct {
	Method string // "CreateSnapshot_Task"
	This   types.ManagedObjectReference
	User   string // account of the session, empty without one
}

// Fault is something that goes wrong with calls.
type Fault struct {
	Method string // empty: any method
	Nth    int    // the how-manieth matching call from now meets it, counted from 1; 0: the first
	Times  int    // how many matching calls in a row meet it, 0: one; negative: all from there on
	Do     Effect
}

// Effect is what happens to a call. next performs it and writes the answer.
type Effect func(w http.ResponseWriter, r *http.Request, next http.Handler)

// wire is the state of the front.
type wire struct {
	mu     sync.Mutex
	calls  []Call
	faults []*armed

	// collectors lets one call at a time make or destroy an event collector: the simulator keeps them in a plain map
	// that several of its objects share (govmomi v0.56.0, simulator/history_collector.go).
	collectors sync.Mutex
}

type armed struct {
	Fault
	seen int
}

// Inject adds a fault; faults compose, the first that matches a call wins. The returned function takes it back.
func (l *Lab) Inject(f Fault) (remove func()) {
	a := &armed{Fault: f}
	w := &l.sim.wire
	w.mu.Lock()
	defer w.mu.Unlock()
	w.faults = append(w.faults, a)
	return func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		for i, x := range w.faults {
			if x == a {
				w.faults = append(w.faults[:i:i], w.faults[i+1:]...)
				return
			}
		}
	}
}

// ClearFaults takes back every fault of Inject.
func (l *Lab) ClearFaults() {
	l.sim.wire.mu.Lock()
	l.sim.wire.faults = nil
	l.sim.wire.mu.Unlock()
}

// Calls returns the calls made since the start or the last ResetCalls, in order of arrival.
func (l *Lab) Calls() []Call {
	w := &l.sim.wire
	w.mu.Lock()
	defer w.mu.Unlock()
	return append([]Call(nil), w.calls...)
}

// Count is how often a method was called.
func (l *Lab) Count(method string) (n int) {
	for _, c := range l.Calls() {
		if c.Method == method {
			n++
		}
	}
	return n
}

// ResetCalls forgets the calls made so far.
func (l *Lab) ResetCalls() {
	w := &l.sim.wire
	w.mu.Lock()
	w.calls = nil
	w.mu.Unlock()
}

// note records the call and returns the fault it meets, if any.
func (w *wire) note(c Call) Effect {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.calls = append(w.calls, c)
	var do Effect
	for _, a := range w.faults {
		if a.Method != "" && a.Method != c.Method {
			continue
		}
		a.seen++
		first := max(a.Nth, 1)
		last := first + max(a.Times, 1) - 1
		if do == nil && a.seen >= first && (a.Times < 0 || a.seen <= last) {
			do = a.Do
		}
	}
	return do
}

// HTTPStatus answers with a status (502, 503) instead of performing the call.
func HTTPStatus(code int) Effect {
	return func(w http.ResponseWriter, _ *http.Request, _ http.Handler) {
		w.Header().Set("Connection", "close")
		http.Error(w, http.StatusText(code), code)
	}
}

// Reset breaks the connection instead of performing the call.
func Reset() Effect {
	return func(http.ResponseWriter, *http.Request, http.Handler) { panic(http.ErrAbortHandler) }
}

// LoseAnswer performs the call and breaks the connection: the client cannot know whether it was done.
func LoseAnswer() Effect {
	return func(_ http.ResponseWriter, r *http.Request, next http.Handler) {
		next.ServeHTTP(newRecorder(), r)
		panic(http.ErrAbortHandler)
	}
}

// Truncate performs the call and sends half of the answer.
func Truncate() Effect {
	return func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		rec := newRecorder()
		next.ServeHTTP(rec, r)
		w.Header().Set("Content-Type", "text/xml")
		w.Header().Set("Content-Length", strconv.Itoa(rec.body.Len()))
		w.WriteHeader(rec.status)
		_, _ = w.Write(rec.body.Bytes()[:rec.body.Len()/2])
		_ = http.NewResponseController(w).Flush()
		panic(http.ErrAbortHandler)
	}
}

// Hang answers nothing until the client leaves.
func Hang() Effect {
	return func(_ http.ResponseWriter, r *http.Request, _ http.Handler) {
		<-r.Context().Done()
		panic(http.ErrAbortHandler)
	}
}

// Delay performs the call after d.
func Delay(d time.Duration) Effect {
	return func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		t := time.NewTimer(d)
		defer t.Stop()
		select {
		case <-t.C:
			next.ServeHTTP(w, r)
		case <-r.Context().Done():
		}
	}
}

// Fail answers with a SOAP fault instead of performing the call.
func Fail(f types.BaseMethodFault) Effect {
	return func(w http.ResponseWriter, _ *http.Request, _ http.Handler) { writeFault(w, f) }
}

// Hook runs fn before the call is performed.
func Hook(fn func()) Effect {
	return func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		fn()
		next.ServeHTTP(w, r)
	}
}

// recorder keeps an answer that is not to be sent as it is.
type recorder struct {
	header http.Header
	body   bytes.Buffer
	status int
}

func newRecorder() *recorder {
	return &recorder{header: http.Header{}, status: http.StatusOK}
}

func (r *recorder) Header() http.Header         { return r.header }
func (r *recorder) Write(p []byte) (int, error) { return r.body.Write(p) }
func (r *recorder) WriteHeader(code int)        { r.status = code }

// serve registers the lab's handlers. Patterns with a method win over the simulator's own, which have none.
func (s *sim) serve(mux *http.ServeMux) {
	mux.HandleFunc("POST /sdk", s.serveSDK)
	mux.HandleFunc("GET /sdk/nfcServiceVersions.xml", serveNFCVersions)
	for _, m := range []string{"GET", "HEAD", "PUT", "POST", "DELETE"} {
		mux.HandleFunc(m+" /folder/", s.serveFolder)
	}
	s.serveLeases(mux)
}

func serveNFCVersions(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "text/xml")
	_, _ = io.WriteString(w, xml.Header+`<namespaces version="1.0"><namespace><name>urn:nfc</name><version>7.0.3.2</version></namespace></namespaces>`)
}

func (s *sim) serveSDK(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		panic(http.ErrAbortHandler) // the client left in the middle of its request
	}
	again := func() io.ReadCloser { return io.NopCloser(bytes.NewReader(body)) }
	r.Body = again()
	method, this := methodOf(body)
	sess := s.sessionOf(r)
	call := Call{Method: method, This: this}
	if sess != nil {
		call.User = sess.UserName
		if s.opt.SessionAge > 0 && time.Since(sess.LoginTime) > s.opt.SessionAge {
			s.endSession(sess.Key)
		}
	}
	do := s.wire.note(call)
	next := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		r.Body = again()
		if strings.HasPrefix(method, "CreateCollector") || method == "DestroyCollector" {
			s.wire.collectors.Lock()
			defer s.wire.collectors.Unlock()
		}
		if !s.serveInternal(w, r, body) {
			s.svc.ServeSDK(w, r)
		}
	})
	if do != nil {
		do(w, r, next)
		return
	}
	next.ServeHTTP(w, r)
}

// methodOf reads the method's name and its _this out of a SOAP envelope.
func methodOf(envelope []byte) (name string, this ref) {
	d := xml.NewDecoder(bytes.NewReader(envelope))
	inBody := false
	for {
		t, err := d.Token()
		if err != nil {
			return name, this
		}
		e, ok := t.(xml.StartElement)
		switch {
		case !ok:
		case !inBody:
			inBody = e.Name.Local == "Body"
		case name == "":
			name = e.Name.Local
		case e.Name.Local == "_this":
			_ = d.DecodeElement(&this, &e)
			return name, this
		default:
			return name, this
		}
	}
}

// sessions lists the live sessions. The table is private, but the session's own view of the manager lists it.
func (s *sim) sessions() []types.UserSession {
	view := (&simulator.Session{Registry: simulator.NewRegistry(), Map: s.reg}).Get(s.reg.SessionManager().Self)
	if m, ok := view.(*simulator.SessionManager); ok {
		return m.SessionList
	}
	return nil
}

// sessionOf is the session of the request's cookie, nil if there is none.
func (s *sim) sessionOf(r *http.Request) *types.UserSession {
	c, err := r.Cookie(soap.SessionCookieName)
	if err != nil {
		return nil
	}
	for _, u := range s.sessions() {
		if u.Key == c.Value {
			return &u
		}
	}
	return nil
}

func (s *sim) endSession(keys ...string) {
	ctx := s.context()
	ctx.Session = &simulator.Session{UserSession: types.UserSession{Key: "lab"}, Registry: simulator.NewRegistry(), Map: s.reg}
	for _, k := range keys {
		s.reg.SessionManager().TerminateSession(ctx, &types.TerminateSession{SessionId: []string{k}})
	}
}

// ExpireSessions ends every session, as a restart of vCenter does.
func (l *Lab) ExpireSessions() {
	for _, u := range l.sim.sessions() {
		l.sim.endSession(u.Key)
	}
}

// Sessions is the number of live sessions.
func (l *Lab) Sessions() int { return len(l.sim.sessions()) }

// writeFault answers with a SOAP fault.
func writeFault(w http.ResponseWriter, f types.BaseMethodFault) {
	kind := reflect.TypeOf(f).Elem().Name()
	var detail bytes.Buffer
	e := xml.NewEncoder(&detail)
	err := e.EncodeElement(f, xml.StartElement{Name: xml.Name{Local: kind + "Fault"}, Attr: []xml.Attr{
		{Name: xml.Name{Local: "xmlns"}, Value: "urn:vim25"},
		{Name: xml.Name{Local: "xsi:type"}, Value: kind}}})
	if err == nil {
		err = e.Flush()
	}
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	var text bytes.Buffer
	_ = xml.EscapeText(&text, []byte(describe(f)))
	writeEnvelope(w, http.StatusInternalServerError, fmt.Appendf(nil,
		"<soapenv:Fault><faultcode>ServerFaultCode</faultcode><faultstring>%s</faultstring><detail>%s</detail></soapenv:Fault>",
		text.Bytes(), detail.Bytes()))
}

func writeEnvelope(w http.ResponseWriter, status int, body []byte) {
	w.Header().Set("Content-Type", "text/xml; charset=utf-8")
	w.WriteHeader(status)
	_, _ = fmt.Fprintf(w, xml.Header+`<soapenv:Envelope xmlns:soapenc="http://schemas.xmlsoap.org/soap/encoding/" `+
		`xmlns:soapenv="http://schemas.xmlsoap.org/soap/envelope/" xmlns:xsd="http://www.w3.org/2001/XMLSchema" `+
		`xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance"><soapenv:Body>%s</soapenv:Body></soapenv:Envelope>`, body)
}
