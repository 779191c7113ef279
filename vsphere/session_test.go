package vsphere

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/vmware/govmomi/vim25/types"

	"github.com/vmkeep/vmkeep/vsphere/lab"
)

func TestSessionComesBack(t *testing.T) {
	w := start(t, machines("web"))
	v := w.find("web")
	w.lab.ExpireSessions()
	must(t, v.PowerOff(w.ctx))
	if n := w.lab.Sessions(); n != 1 {
		t.Errorf("%d sessions", n)
	}
}

func TestManyCallsLogInOnce(t *testing.T) {
	w := start(t, machines("web"))
	v := w.find("web")
	w.lab.ExpireSessions()
	w.lab.ResetCalls()
	var all sync.WaitGroup
	for range 20 {
		all.Go(func() {
			if _, err := v.power(w.ctx); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	if n := w.lab.Count("Login"); n != 1 {
		t.Errorf("%d logins", n)
	}
}

func TestSessionEndsInTheMiddleOfAWalk(t *testing.T) {
	var opt lab.Options
	for i := range 3 {
		opt.Machines = append(opt.Machines, lab.Machine{Name: "m" + string(rune('0'+i))})
	}
	w := start(t, opt)
	for _, method := range []string{"CreateContainerView", "RetrievePropertiesEx", "DestroyView"} {
		w.lab.Inject(lab.Fault{Method: method, Do: lab.Hook(w.lab.ExpireSessions)})
		list, err := w.c.Machines(w.ctx, Selection{})
		if err != nil || len(list) != 3 {
			t.Errorf("%s: %d machines, %v", method, len(list), err)
		}
		w.lab.ClearFaults()
	}
}

func TestPasswordChangedMeanwhile(t *testing.T) {
	w := start(t, machines("web"))
	v := w.find("web")
	w.lab.ExpireSessions()
	defer w.lab.Inject(lab.Fault{Method: "Login", Times: -1, Do: lab.Fail(&types.InvalidLogin{})})()
	if _, err := v.State(w.ctx); !errors.Is(err, ErrLogin) || strings.Contains(err.Error(), password) {
		t.Errorf("error %v", err)
	}
}

func TestReadsAreRepeated(t *testing.T) {
	w := start(t, machines("web"))
	v := w.find("web")
	for name, do := range map[string]lab.Effect{"502": lab.HTTPStatus(502), "503": lab.HTTPStatus(503), "504": lab.HTTPStatus(504), "reset": lab.Reset(), "half": lab.Truncate(), "lost": lab.LoseAnswer()} {
		w.lab.Inject(lab.Fault{Method: "RetrievePropertiesEx", Times: 3, Do: do})
		s, err := v.State(w.ctx)
		if err != nil {
			t.Errorf("%s: %v", name, err)
		} else if len(s.Disks) != 1 || len(s.Datastores) != 1 {
			t.Errorf("%s: half an answer was kept: %+v", name, s.Machine)
		}
		w.lab.ClearFaults()
	}
}

func TestPatienceEnds(t *testing.T) {
	w := start(t, machines("web"))
	v := w.find("web")
	w.c.s.patience = 20 * time.Millisecond
	defer w.lab.Inject(lab.Fault{Times: -1, Do: lab.HTTPStatus(503)})()
	if _, err := v.State(w.ctx); !errors.Is(err, ErrUnreachable) {
		t.Errorf("error %v", err)
	}
}

func TestCallsThatHang(t *testing.T) {
	w := start(t, machines("web"))
	w.c.s.callTimeout = 50 * time.Millisecond
	v := w.find("web")
	remove := w.lab.Inject(lab.Fault{Method: "RetrievePropertiesEx", Do: lab.Hang()})
	if _, err := v.State(w.ctx); err != nil {
		t.Errorf("one call hung: %v", err)
	}
	remove()
	defer w.lab.Inject(lab.Fault{Times: -1, Do: lab.Hang()})()
	ctx, cancel := context.WithTimeoutCause(w.ctx, 100*time.Millisecond, errors.New("the test's patience"))
	defer cancel()
	if _, err := v.State(ctx); err == nil || !strings.Contains(err.Error(), "the test's patience") {
		t.Errorf("error %v", err)
	}
}

func TestKeepAliveKeepsTheSession(t *testing.T) {
	w := start(t, lab.Options{})
	w.lab.ResetCalls()
	c := w.dial(Config{KeepAlive: 5 * time.Millisecond})
	for w.lab.Count("CurrentTime") < 3 {
		if w.ctx.Err() != nil {
			t.Fatal("no keep-alive")
		}
		time.Sleep(time.Millisecond)
	}
	w.lab.ExpireSessions()
	n := w.lab.Count("Login")
	for w.lab.Count("Login") == n {
		if w.ctx.Err() != nil {
			t.Fatal("no new login")
		}
		time.Sleep(time.Millisecond)
	}
	must(t, c.Close())
}

func TestCloseLogsOut(t *testing.T) {
	w := start(t, machines("web"))
	v := w.find("web")
	must(t, w.c.Close())
	must(t, w.c.Close())
	if n := w.lab.Sessions(); n != 0 {
		t.Errorf("%d sessions", n)
	}
	if _, err := v.State(w.ctx); !errors.Is(err, ErrClosed) {
		t.Errorf("after Close: %v", err)
	}
}

func TestMissingPrivilegeIsNamed(t *testing.T) {
	w := start(t, lab.Options{Machines: []lab.Machine{{Name: "web", Tracking: true}}, Users: []lab.User{{Name: "weak", Password: password, Privileges: []string{"VirtualMachine.State.RemoveSnapshot"}}}})
	weak := w.dial(Config{Username: "weak"})
	v, err := weak.Find(w.ctx, "web")
	must(t, err)
	_, err = v.WithSnapshot(w.ctx, SnapshotOptions{Operation: w.begin()}, nothing)
	var e *Error
	if !errors.As(err, &e) || e.Kind != ErrPermission || e.Privilege != "VirtualMachine.State.CreateSnapshot" || e.Object == "" {
		t.Errorf("error %+v", err)
	}
	_, err = v.ReadTicket(w.ctx, v.Machine().Disks[0].Key)
	if !errors.As(err, &e) || e.Kind != ErrPermission || e.Privilege == "" || e.Object != "/dc1/vm/web" {
		t.Errorf("ticket: %+v", err)
	}
}

// Nothing that is logged or told at any level may hold the password or a ticket's secret.
func TestNoSecretIsLogged(t *testing.T) {
	w := start(t, machines("web"))
	var log bytes.Buffer
	c := w.dial(Config{Log: slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug}))})
	v, err := c.Find(w.ctx, "web")
	must(t, err)
	k, err := v.ReadTicket(w.ctx, v.Machine().Disks[0].Key)
	must(t, err)
	c.log.Info("ticket", "ticket", k, "text", k.String())
	w.lab.ExpireSessions()
	w.lab.Inject(lab.Fault{Times: 3, Do: lab.HTTPStatus(503)})
	_, err = v.State(w.ctx)
	must(t, err)
	if s := log.String(); strings.Contains(s, password) || strings.Contains(s, k.SessionID) || !strings.Contains(s, "logging in again") {
		t.Errorf("log: %s", s)
	}
}

func TestBackoffGrowsAndIsBounded(t *testing.T) {
	for i, last := 0, time.Duration(0); i < 40; i++ {
		d := defaultBackoff(i)
		if d <= 0 || d > 10*time.Second || i < 5 && d < last/2 {
			t.Errorf("pause %d: %v after %v", i, d, last)
		}
		last = d
	}
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancelCause(t.Context())
		why := errors.New("why")
		time.AfterFunc(time.Second, func() { cancel(why) })
		if err := sleep(ctx, time.Hour); !errors.Is(err, why) {
			t.Errorf("woken by %v", err)
		}
	})
}
