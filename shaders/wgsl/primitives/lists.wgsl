// Text that sources share: terms(3, "f(%du)") is f(0u), f(1u), f(2u); joined(list, "at.%s") too;
// four(w, dtype, words, g) is elements 4 g .. 4 g + 3 of `w`, a vector of so many words.
# macro joined(items, form)
{% for item in items %}{{ form % item }}{{ ", " if not loop.last }}{% endfor %}
# endmacro
# macro terms(count, form)
{{ joined(range(count), form)|trim }}
# endmacro
# macro four(w, dtype, words, g)
# if PER_WORD[dtype] == 1
{{ w }}
# elif PER_WORD[dtype] == 2
# set V = VALUE[dtype]
# set unpack = "unpack_%s(%s.%%s)" % (dtype, w)
vec4<{{ V }}>({{ joined("xyzw"[2 * g:2 * g + 2], unpack)|trim }})
# else
unpack_{{ dtype }}({{ w }}{{ "." ~ "xyzw"[g] if words > 1 }})
# endif
# endmacro
