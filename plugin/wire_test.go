package plugin_test

import (
	"fmt"
	"math/rand/v2"
	"net"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/vmkeep/vmkeep/plugin"
)

// connect serves svc and returns the host's end of a real connection.
func connect(t *testing.T, svc plugin.Service) plugin.Service {
	t.Helper()
	t.Cleanup(func() { goleak.VerifyNone(t) })
	return plugin.NewClient(dial(t, func(s *grpc.Server) { plugin.Register(s, svc, hclog.NewNullLogger()) }), "test 1")
}

// dial connects to a server on loopback.
func dial(t *testing.T, register func(*grpc.Server)) *grpc.ClientConn {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := grpc.NewServer()
	register(s)
	served := make(chan error, 1)
	go func() { served <- s.Serve(l) }()
	conn, err := grpc.NewClient(l.Addr().String(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		conn.Close()
		s.Stop()
		if err := <-served; err != nil {
			t.Error(err)
		}
	})
	return conn
}

// filler fills contract types with random values.
type filler struct{ *rand.Rand }

// words are the values of the types that are enumerations.
func words() map[reflect.Type][]string {
	m := make(map[reflect.Type][]string)
	add := func(v any, all ...string) { m[reflect.TypeOf(v)] = all }
	add(plugin.Consistency(""), "app", "fs", "crash", "off")
	add(plugin.Severity(""), "info", "warning", "error")
	add(plugin.EventKind(""), "phase", "progress", "diagnostic", "result")
	add(plugin.RestoreMode(""), "new", "in-place", "rollback", "attach", "directory")
	add(plugin.RestoreFormat(""), "raw", "vmdk", "flat", "stream", "ova")
	add(plugin.Code(""), "internal", "wrong-password", "point-not-found", "unsupported")
	return m
}

// fill sets everything below v, which must be settable: no field stays zero, so that none can be forgotten.
func (f filler) fill(v reflect.Value) {
	switch v.Interface().(type) {
	case time.Time:
		v.Set(reflect.ValueOf(time.Unix(f.Int64N(4e9), f.Int64N(1e9)).UTC()))
		return
	case time.Duration:
		v.SetInt(1 + f.Int64N(1e18))
		return
	}
	if all := words()[v.Type()]; all != nil {
		v.SetString(all[f.IntN(len(all))])
		return
	}
	switch v.Kind() {
	case reflect.String:
		v.SetString(fmt.Sprintf("text-%d-ü", f.Uint32()))
	case reflect.Bool:
		v.SetBool(true)
	case reflect.Int, reflect.Int64:
		v.SetInt(1 + f.Int64N(1<<62))
	case reflect.Int32:
		v.SetInt(1 + f.Int64N(1<<31-1))
	case reflect.Uint32:
		v.SetUint(uint64(1 + f.Uint32N(1<<31)))
	case reflect.Uint64:
		v.SetUint(1 + f.Uint64N(1<<63))
	case reflect.Float64:
		v.SetFloat(f.Float64() + 0.1)
	case reflect.Slice:
		v.Set(reflect.MakeSlice(v.Type(), 1+f.IntN(3), 3))
		for i := range v.Len() {
			f.fill(v.Index(i))
		}
	case reflect.Map:
		v.Set(reflect.MakeMap(v.Type()))
		for range 1 + f.IntN(3) {
			key, value := reflect.New(v.Type().Key()).Elem(), reflect.New(v.Type().Elem()).Elem()
			f.fill(key)
			f.fill(value)
			v.SetMapIndex(key, value)
		}
	case reflect.Pointer:
		v.Set(reflect.New(v.Type().Elem()))
		f.fill(v.Elem())
	case reflect.Struct:
		for i := range v.NumField() {
			if v.Type().Field(i).Type.Kind() != reflect.Interface { // Error.Err stays in its process
				f.fill(v.Field(i))
			}
		}
	default:
		panic("a contract type holds a " + v.Kind().String())
	}
}

// TestEveryFieldCrosses calls every method of the contract, found by reflection, with random requests and answers.
func TestEveryFieldCrosses(t *testing.T) {
	service := reflect.TypeFor[plugin.Service]()
	for i := range service.NumMethod() {
		m := service.Method(i)
		t.Run(m.Name, func(t *testing.T) {
			e := &echo{answers: make(map[string]any)}
			host := connect(t, e)
			f := filler{rand.New(rand.NewPCG(1, uint64(i)))}
			for round := range 20 {
				roundTrip(t, trip{f, e, reflect.ValueOf(host).MethodByName(m.Name), m.Name})
				if t.Failed() {
					t.Fatalf("in round %d", round)
				}
			}
		})
	}
}

type trip struct {
	fill   filler
	echo   *echo
	method reflect.Value
	name   string
}

func roundTrip(t *testing.T, r trip) {
	t.Helper()
	typ := r.method.Type()
	args := []reflect.Value{reflect.ValueOf(t.Context())}
	var question any
	var got []any // what the callback was given
	for i := 1; i < typ.NumIn(); i++ {
		in := typ.In(i)
		if in.Kind() == reflect.Func {
			args = append(args, reflect.MakeFunc(in, func(a []reflect.Value) []reflect.Value {
				got = append(got, a[0].Interface())
				out := make([]reflect.Value, in.NumOut())
				for i := range out {
					out[i] = reflect.Zero(in.Out(i))
				}
				return out
			}))
			continue
		}
		q := reflect.New(in).Elem()
		r.fill.fill(q)
		args, question = append(args, q), q.Interface()
	}
	r.echo.events, r.echo.frames, r.echo.files = nil, nil, nil
	for range 3 {
		var ev plugin.Event
		r.fill.fill(reflect.ValueOf(&ev).Elem())
		ev.Kind = plugin.EventDiagnostic // progress may be superseded
		r.echo.events = append(r.echo.events, ev)
		var file plugin.File
		r.fill.fill(reflect.ValueOf(&file).Elem())
		r.echo.files = append(r.echo.files, file)
		data := []byte(fmt.Sprint(r.fill.Uint64()))
		r.echo.frames = append(r.echo.frames, plugin.Frame{Offset: r.fill.Int64N(1 << 50), Length: int64(len(data)), Data: data})
	}
	var answer reflect.Value
	if typ.NumOut() == 2 {
		answer = reflect.New(typ.Out(0)).Elem()
		r.fill.fill(answer)
		r.echo.answers[r.name] = answer.Interface()
	}
	r.echo.asked = nil
	out := r.method.Call(args)

	if err, _ := out[len(out)-1].Interface().(error); err != nil {
		t.Fatal(err)
	}
	if want := []any{question}; !reflect.DeepEqual(r.echo.asked, want) {
		t.Errorf("asked\n%+v\nthe plugin got\n%+v", want, r.echo.asked)
	}
	if answer.IsValid() && !reflect.DeepEqual(out[0].Interface(), answer.Interface()) {
		t.Errorf("answered\n%+v\nthe host got\n%+v", answer, out[0])
	}
	var sent []any
	switch {
	case strings.HasPrefix(r.name, "Read"):
		for _, v := range r.echo.frames {
			sent = append(sent, v)
		}
	case r.name == "TarFiles":
		for _, v := range r.echo.frames {
			sent = append(sent, v.Data)
		}
	case r.name == "ListFiles":
		for _, v := range r.echo.files {
			sent = append(sent, v)
		}
	case typ.NumIn() > 1 && typ.In(typ.NumIn()-1).Kind() == reflect.Func:
		for _, v := range r.echo.events {
			sent = append(sent, v)
		}
	}
	if !reflect.DeepEqual(got, sent) {
		t.Errorf("handed out\n%+v\nthe host got\n%+v", sent, got)
	}
}

// TestZeroValuesCross: an empty answer stays empty, with nil for what is absent.
func TestZeroValuesCross(t *testing.T) {
	e := &echo{}
	host := connect(t, e)
	report, err := host.Backup(t.Context(), plugin.BackupRequest{}, nil)
	if err != nil || !reflect.DeepEqual(report, plugin.BackupReport{}) {
		t.Errorf("got %+v, %v", report, err)
	}
	if want := []any{plugin.BackupRequest{}}; !reflect.DeepEqual(e.asked, want) {
		t.Errorf("the plugin got %+v", e.asked)
	}
	points, err := host.Points(t.Context(), plugin.PointFilter{})
	if err != nil || points != nil {
		t.Errorf("got %+v, %v", points, err)
	}
}

// TestLongListsCross: lists longer than one message come whole and in order.
func TestLongListsCross(t *testing.T) {
	var machines []plugin.Machine
	e := &echo{}
	for i := range 3000 {
		machines = append(machines, plugin.Machine{ID: fmt.Sprint(i)})
		e.files = append(e.files, plugin.File{Path: fmt.Sprint(i)})
	}
	e.answers = map[string]any{"Machines": machines}
	host := connect(t, e)
	got, err := host.Machines(t.Context(), plugin.Selection{})
	if err != nil || !reflect.DeepEqual(got, machines) {
		t.Errorf("got %d machines, %v", len(got), err)
	}
	var files []plugin.File
	err = host.ListFiles(t.Context(), plugin.FileRequest{}, func(f plugin.File) error {
		files = append(files, f)
		return nil
	})
	if err != nil || !reflect.DeepEqual(files, e.files) {
		t.Errorf("got %d files, %v", len(files), err)
	}
}
