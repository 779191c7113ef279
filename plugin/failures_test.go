package plugin_test

import (
	"context"
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"reflect"
	"strconv"
	"strings"
	"testing"

	"github.com/vmkeep/vmkeep/plugin"
)

// codes are the codes that errors.go declares, read from its source so that none can be forgotten.
func codes(t *testing.T) []plugin.Code {
	t.Helper()
	file, err := parser.ParseFile(token.NewFileSet(), "errors.go", nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	var all []plugin.Code
	ast.Inspect(file, func(n ast.Node) bool {
		v, ok := n.(*ast.ValueSpec)
		if !ok || len(v.Names) != 1 || !strings.HasPrefix(v.Names[0].Name, "Code") {
			return true
		}
		text, err := strconv.Unquote(v.Values[0].(*ast.BasicLit).Value)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, plugin.Code(text))
		return true
	})
	if len(all) < 29 {
		t.Fatalf("found only %d codes", len(all))
	}
	return all
}

// TestErrorsCross: an expected failure arrives with all it says, and answers errors.Is as at home.
func TestErrorsCross(t *testing.T) {
	e := &echo{}
	host := connect(t, e)
	for _, code := range codes(t) {
		cause := errors.New("the cause stays where it happened")
		sent := &plugin.Error{Code: code, Summary: "s", Detail: "d", Remedy: "r", Object: "o", Err: cause}
		e.err = fmt.Errorf("wrapped on the way: %w", sent)
		for method, call := range everyMethod(host) {
			err := call(t.Context())
			want := *sent
			want.Err = nil
			var got *plugin.Error
			if !errors.As(err, &got) || !reflect.DeepEqual(*got, want) {
				t.Errorf("%s, %s: got %#v", method, code, err)
			}
			if !errors.Is(err, &plugin.Error{Code: code}) || plugin.CodeOf(err) != code {
				t.Errorf("%s: errors.Is does not know %s", method, code)
			}
			if cancelled := code == plugin.CodeCancelled; errors.Is(err, context.Canceled) != cancelled {
				t.Errorf("%s, %s: is context.Canceled: %v", method, code, !cancelled)
			}
		}
	}
}

// everyMethod calls each method of a service without a request.
func everyMethod(s plugin.Service) map[string]func(context.Context) error {
	calls := make(map[string]func(context.Context) error)
	v := reflect.ValueOf(s)
	for i := range reflect.TypeFor[plugin.Service]().NumMethod() {
		name := reflect.TypeFor[plugin.Service]().Method(i).Name
		m := v.MethodByName(name)
		calls[name] = func(ctx context.Context) error {
			args := []reflect.Value{reflect.ValueOf(ctx)}
			for i := 1; i < m.Type().NumIn(); i++ {
				args = append(args, reflect.Zero(m.Type().In(i)))
			}
			out := m.Call(args)
			err, _ := out[len(out)-1].Interface().(error)
			return err
		}
	}
	return calls
}

// TestUnexpectedErrorsAreInternal: an error without a code is vmkeep's own fault, and keeps its text.
func TestUnexpectedErrorsAreInternal(t *testing.T) {
	e := &echo{err: errors.New("something odd")}
	err := connect(t, e).Configure(t.Context(), plugin.Config{})
	if plugin.CodeOf(err) != plugin.CodeInternal || err.Error() != "something odd" {
		t.Errorf("got %#v", err)
	}
}

// TestPanicsBecomeErrors: a defect fails the call, not the process.
func TestPanicsBecomeErrors(t *testing.T) {
	e := &echo{during: func(context.Context) error { panic("index out of range") }}
	host := connect(t, e)
	for method, call := range everyMethod(host) {
		err := call(t.Context())
		var got *plugin.Error
		if !errors.As(err, &got) || got.Code != plugin.CodeInternal || !strings.Contains(got.Detail, "index out of range") || got.Remedy == "" {
			t.Errorf("%s: got %#v", method, err)
		}
	}
	e.during = nil
	if _, err := host.Info(t.Context()); err != nil {
		t.Errorf("the plugin does not live on: %v", err)
	}
}

// TestReportsCrossWithErrors: what an operation did before it failed is not lost.
func TestReportsCrossWithErrors(t *testing.T) {
	want := plugin.RestoreReport{Operation: "op", Disks: []plugin.RestoredDisk{{Name: "scsi0-0", Written: 7}}}
	e := &echo{err: &plugin.Error{Code: plugin.CodeSpace, Summary: "full"}, answers: map[string]any{"Restore": want}}
	got, err := connect(t, e).Restore(t.Context(), plugin.RestoreRequest{}, nil)
	if plugin.CodeOf(err) != plugin.CodeSpace || !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v, %v", got, err)
	}
}

// TestRequestsAreNotBent: what the wire has no word for is refused, not replaced by a default.
func TestRequestsAreNotBent(t *testing.T) {
	e := &echo{}
	host := connect(t, e)
	for name, call := range map[string]func() error{
		"an unknown mode": func() error {
			_, err := host.Restore(t.Context(), plugin.RestoreRequest{Mode: "sideways"}, nil)
			return err
		},
		"an unknown consistency": func() error {
			_, err := host.Backup(t.Context(), plugin.BackupRequest{Quiesce: plugin.Quiesce{Worst: "none"}}, nil)
			return err
		},
		"a path that is not UTF-8": func() error {
			_, err := host.Restore(t.Context(), plugin.RestoreRequest{Directory: "/srv/\xff"}, nil)
			return err
		},
		"a map value that is not UTF-8": func() error {
			return host.Configure(t.Context(), plugin.Config{Repository: plugin.RepositoryConfig{Options: map[string]string{"a": "\xff"}}})
		},
	} {
		err := call()
		var got *plugin.Error
		if !errors.As(err, &got) || got.Code != plugin.CodeInvalid || got.Remedy == "" || got.Object == "" {
			t.Errorf("%s: got %#v", name, err)
		}
	}
	if len(e.asked) > 0 {
		t.Errorf("the plugin was asked %+v", e.asked)
	}
}

// TestNamesOfGuestsCross: names in a guest are bytes; other texts are repaired rather than lost.
func TestNamesOfGuestsCross(t *testing.T) {
	want := plugin.File{Path: "/caf\xe9", Link: "\xff\xfe", Xattrs: []string{"user.\x80"}, Note: "no \xff"}
	e := &echo{files: []plugin.File{want}}
	host := connect(t, e)
	var got plugin.File
	r := plugin.FileRequest{Path: "/caf\xe9", Globs: []string{"\xe9*"}}
	if err := host.ListFiles(t.Context(), r, func(f plugin.File) error { got = f; return nil }); err != nil {
		t.Fatal(err)
	}
	want.Note = "no \uFFFD"
	if !reflect.DeepEqual(got, want) || !reflect.DeepEqual(e.asked, []any{r}) {
		t.Errorf("got %+v, asked %+v", got, e.asked)
	}
}

// TestCallbackErrorsEndTheCall: fn's error comes back as it is, and the plugin stops sending.
func TestCallbackErrorsEndTheCall(t *testing.T) {
	stop := errors.New("enough")
	e := &echo{frames: make([]plugin.Frame, 10000)}
	for i := range e.frames {
		e.frames[i] = plugin.Frame{Offset: int64(i) << 20, Length: 1 << 20}
	}
	calls := 0
	err := connect(t, e).ReadDisk(t.Context(), plugin.ReadDiskRequest{}, func(plugin.Frame) error {
		calls++
		return stop
	})
	if err != stop || calls != 1 {
		t.Errorf("got %v after %d frames", err, calls)
	}
}
