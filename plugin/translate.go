package plugin

import (
	"fmt"
	"reflect"
	"strings"
	"time"
	"unicode/utf8"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/vmkeep/vmkeep/plugin/internal/pb"
)

// How values of the contract become messages of the wire, and back.
//
// One rule instead of a function per type: a field of a contract type and the field of its message have the same
// name, but for case and underscores (InstanceUUID, instance_uuid). A type that lacks a counterpart on either side is
// a defect, which the tests find by translating every type of the contract.
//
//	string                <-> string, bytes (names that a guest chose need not be UTF-8), or enum ("in-place" <-> RESTORE_MODE_IN_PLACE)
//	int, int32, uint32... <-> integers         time.Time     <-> Timestamp, absent when zero
//	[]T, map[string]string <-> repeated, map   time.Duration <-> Duration, absent when zero
//	struct, *struct       <-> message; a nil pointer is an absent message
//	*Error                <-> Diagnostic; Err, a cause in another process, stays behind

// strictness says what happens to text that the wire cannot carry.
type strictness int

const (
	lenient strictness = iota // replace it: an answer with a broken character is better than none
	strict                    // refuse it: a request must not come to mean something else
)

// to translates an answer.
func to[P proto.Message](v any) P {
	var zero P
	m := zero.ProtoReflect().New()
	if err := encodeStruct(reflect.ValueOf(v), m, lenient); err != nil {
		panic(err) // a type of the contract without its message; the round-trip test excludes it
	}
	return m.Interface().(P)
}

// toAll translates the elements of an answer.
func toAll[P proto.Message, T any](vs []T) []P {
	var ps []P
	for _, v := range vs {
		ps = append(ps, to[P](v))
	}
	return ps
}

// request translates what a host asks. The error is an [*Error]: the request contains what the wire has no word for.
func request[P proto.Message](v any) (P, error) {
	var zero P
	m := zero.ProtoReflect().New()
	if err := encodeStruct(reflect.ValueOf(v), m, strict); err != nil {
		return zero, err
	}
	return m.Interface().(P), nil
}

// from translates a message; the nil message is the zero value. Enum numbers of a newer peer become empty.
func from[T any](m proto.Message) T {
	var v T
	if err := decodeStruct(m.ProtoReflect(), reflect.ValueOf(&v).Elem(), lenient); err != nil {
		panic(err)
	}
	return v
}

// fromAll translates the elements of an answer.
func fromAll[T any, P proto.Message](ps []P) []T {
	var vs []T
	for _, p := range ps {
		vs = append(vs, from[T](p))
	}
	return vs
}

// received translates a request, refusing enum numbers of a newer host.
func received[T any](m proto.Message) (T, error) {
	var v T
	err := decodeStruct(m.ProtoReflect(), reflect.ValueOf(&v).Elem(), strict)
	return v, err
}

// diagnostic is how an error of a call crosses the wire: nil for nil, the [*Error] in its chain if there is one.
func diagnostic(err error) *pb.Diagnostic {
	if err == nil {
		return nil
	}
	return to[*pb.Diagnostic](*asError(err))
}

// failure is the reverse of diagnostic. A nil diagnostic is no error.
func failure(d *pb.Diagnostic) error {
	if d == nil {
		return nil
	}
	e := from[Error](d)
	if e.Code == "" {
		e.Code = CodeInternal // a code this program does not know
	}
	return &e
}

const (
	timestampName = protoreflect.FullName("google.protobuf.Timestamp")
	durationName  = protoreflect.FullName("google.protobuf.Duration")
)

// counterpart finds the message field of a struct field. The unexported rest of the world, and causes of errors,
// have none: ok is false.
func counterpart(f reflect.StructField, m protoreflect.MessageDescriptor) (_ protoreflect.FieldDescriptor, ok bool, err error) {
	if f.Type.Kind() == reflect.Interface {
		return nil, false, nil // Error.Err
	}
	fields := m.Fields()
	for i := range fields.Len() {
		if strings.EqualFold(strings.ReplaceAll(string(fields.Get(i).Name()), "_", ""), f.Name) {
			return fields.Get(i), true, nil
		}
	}
	return nil, false, fmt.Errorf("message %s has no field for %s", m.FullName(), f.Name)
}

func encodeStruct(v reflect.Value, m protoreflect.Message, s strictness) error {
	t := v.Type()
	for i := range t.NumField() {
		fd, ok, err := counterpart(t.Field(i), m.Descriptor())
		if err != nil {
			return err
		}
		if !ok || v.Field(i).IsZero() {
			continue
		}
		if err := encodeField(v.Field(i), m, fd, s); err != nil {
			return err
		}
	}
	if d, ok := m.Interface().(*pb.Diagnostic); ok && t == reflect.TypeFor[Error]() {
		d.Severity = pb.Severity_SEVERITY_ERROR
	}
	return nil
}

func encodeField(v reflect.Value, m protoreflect.Message, fd protoreflect.FieldDescriptor, s strictness) error {
	switch {
	case fd.IsMap():
		entries := m.Mutable(fd).Map()
		for it := v.MapRange(); it.Next(); {
			key, err := encodeValue(it.Key(), fd.MapKey(), s)
			if err != nil {
				return err
			}
			value, err := encodeValue(it.Value(), fd.MapValue(), s)
			if err != nil {
				return err
			}
			entries.Set(key.MapKey(), value)
		}
		return nil
	case fd.IsList():
		list := m.Mutable(fd).List()
		for i := range v.Len() {
			if fd.Kind() == protoreflect.MessageKind {
				if err := encodeMessage(v.Index(i), list.AppendMutable().Message(), s); err != nil {
					return err
				}
				continue
			}
			value, err := encodeValue(v.Index(i), fd, s)
			if err != nil {
				return err
			}
			list.Append(value)
		}
		return nil
	case fd.Kind() == protoreflect.MessageKind:
		return encodeMessage(v, m.Mutable(fd).Message(), s)
	}
	value, err := encodeValue(v, fd, s)
	if err != nil {
		return err
	}
	m.Set(fd, value)
	return nil
}

func encodeMessage(v reflect.Value, m protoreflect.Message, s strictness) error {
	switch m.Descriptor().FullName() {
	case timestampName:
		proto.Merge(m.Interface(), timestamppb.New(v.Interface().(time.Time)))
		return nil
	case durationName:
		proto.Merge(m.Interface(), durationpb.New(v.Interface().(time.Duration)))
		return nil
	}
	return encodeStruct(reflect.Indirect(v), m, s)
}

func encodeValue(v reflect.Value, fd protoreflect.FieldDescriptor, s strictness) (protoreflect.Value, error) {
	switch fd.Kind() {
	case protoreflect.StringKind:
		text := v.String()
		if !utf8.ValidString(text) {
			if s == strict {
				return protoreflect.Value{}, &Error{Code: CodeInvalid, Summary: fmt.Sprintf("%s %q is not valid UTF-8", spoken(fd), text),
					Remedy: "give it in UTF-8", Object: string(fd.Name())}
			}
			text = strings.ToValidUTF8(text, "\uFFFD")
		}
		return protoreflect.ValueOfString(text), nil
	case protoreflect.BytesKind:
		return protoreflect.ValueOfBytes([]byte(v.String())), nil
	case protoreflect.EnumKind:
		n, ok := enumNumber(fd.Enum(), v.String())
		switch {
		case !ok && s == strict:
			return protoreflect.Value{}, &Error{Code: CodeInvalid, Summary: fmt.Sprintf("there is no %s %q", spoken(fd), v.String()),
				Remedy: "give one of " + strings.Join(enumWords(fd.Enum()), ", "), Object: string(fd.Name())}
		case !ok && fd.Enum().FullName() == pb.Code(0).Descriptor().FullName():
			n = protoreflect.EnumNumber(pb.Code_CODE_INTERNAL)
		}
		return protoreflect.ValueOfEnum(n), nil
	case protoreflect.BoolKind:
		return protoreflect.ValueOfBool(v.Bool()), nil
	case protoreflect.Int32Kind:
		return protoreflect.ValueOfInt32(int32(v.Int())), nil
	case protoreflect.Int64Kind:
		return protoreflect.ValueOfInt64(v.Int()), nil
	case protoreflect.Uint32Kind:
		return protoreflect.ValueOfUint32(uint32(v.Uint())), nil
	case protoreflect.Uint64Kind:
		return protoreflect.ValueOfUint64(v.Uint()), nil
	case protoreflect.DoubleKind:
		return protoreflect.ValueOfFloat64(v.Float()), nil
	}
	return protoreflect.Value{}, fmt.Errorf("field %s: kind %s is not translated", fd.FullName(), fd.Kind())
}

func decodeStruct(m protoreflect.Message, v reflect.Value, s strictness) error {
	t := v.Type()
	for i := range t.NumField() {
		fd, ok, err := counterpart(t.Field(i), m.Descriptor())
		if err != nil {
			return err
		}
		if !ok || !m.Has(fd) {
			continue
		}
		if err := decodeField(m, fd, v.Field(i), s); err != nil {
			return err
		}
	}
	return nil
}

func decodeField(m protoreflect.Message, fd protoreflect.FieldDescriptor, v reflect.Value, s strictness) error {
	switch {
	case fd.IsMap():
		v.Set(reflect.MakeMap(v.Type()))
		var err error
		m.Get(fd).Map().Range(func(key protoreflect.MapKey, value protoreflect.Value) bool {
			k, e := reflect.New(v.Type().Key()).Elem(), reflect.New(v.Type().Elem()).Elem()
			if err = decodeValue(key.Value(), fd.MapKey(), k, s); err == nil {
				err = decodeValue(value, fd.MapValue(), e, s)
			}
			v.SetMapIndex(k, e)
			return err == nil
		})
		return err
	case fd.IsList():
		list := m.Get(fd).List()
		v.Set(reflect.MakeSlice(v.Type(), list.Len(), list.Len()))
		for i := range list.Len() {
			if err := decodeValue(list.Get(i), fd, v.Index(i), s); err != nil {
				return err
			}
		}
		return nil
	}
	return decodeValue(m.Get(fd), fd, v, s)
}

func decodeValue(value protoreflect.Value, fd protoreflect.FieldDescriptor, v reflect.Value, s strictness) error {
	switch fd.Kind() {
	case protoreflect.MessageKind:
		switch m := value.Message().Interface().(type) {
		case *timestamppb.Timestamp:
			v.Set(reflect.ValueOf(m.AsTime()))
			return nil
		case *durationpb.Duration:
			v.SetInt(int64(m.AsDuration()))
			return nil
		}
		if v.Kind() == reflect.Pointer {
			v.Set(reflect.New(v.Type().Elem()))
		}
		return decodeStruct(value.Message(), reflect.Indirect(v), s)
	case protoreflect.EnumKind:
		word := enumWord(fd.Enum(), value.Enum())
		if word == "" && s == strict {
			return &Error{Code: CodeUnsupported, Summary: fmt.Sprintf("%s number %d is not known here", spoken(fd), value.Enum()),
				Detail: "the host is newer than the plugin", Remedy: "install a newer vmkeep-plugin", Object: string(fd.Name())}
		}
		if word == "" && v.Type() == reflect.TypeFor[Code]() {
			word = string(CodeInternal)
		}
		v.SetString(word)
	case protoreflect.StringKind:
		v.SetString(value.String())
	case protoreflect.BytesKind:
		v.SetString(string(value.Bytes()))
	case protoreflect.BoolKind:
		v.SetBool(value.Bool())
	case protoreflect.Int32Kind, protoreflect.Int64Kind:
		v.SetInt(value.Int())
	case protoreflect.Uint32Kind, protoreflect.Uint64Kind:
		v.SetUint(value.Uint())
	case protoreflect.DoubleKind:
		v.SetFloat(value.Float())
	default:
		return fmt.Errorf("field %s: kind %s is not translated", fd.FullName(), fd.Kind())
	}
	return nil
}

// enumPrefix is what the names of an enum's values begin with: RESTORE_MODE_ for RestoreMode.
func enumPrefix(d protoreflect.EnumDescriptor) string {
	return strings.TrimSuffix(string(d.Values().ByNumber(0).Name()), "UNSPECIFIED")
}

// enumWord is the word of a number: "in-place" for RESTORE_MODE_IN_PLACE; empty for a number that is not known.
func enumWord(d protoreflect.EnumDescriptor, n protoreflect.EnumNumber) string {
	value := d.Values().ByNumber(n)
	if value == nil || n == 0 {
		return ""
	}
	return strings.ReplaceAll(strings.ToLower(strings.TrimPrefix(string(value.Name()), enumPrefix(d))), "_", "-")
}

func enumNumber(d protoreflect.EnumDescriptor, word string) (protoreflect.EnumNumber, bool) {
	for i := range d.Values().Len() {
		if n := d.Values().Get(i).Number(); n != 0 && enumWord(d, n) == word {
			return n, true
		}
	}
	return 0, false
}

func enumWords(d protoreflect.EnumDescriptor) []string {
	var words []string
	for i := 1; i < d.Values().Len(); i++ {
		words = append(words, enumWord(d, d.Values().Get(i).Number()))
	}
	return words
}

// spoken is the field's name for people.
func spoken(fd protoreflect.FieldDescriptor) string {
	return strings.ReplaceAll(string(fd.Name()), "_", " ")
}
