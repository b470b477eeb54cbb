// A matrix times one vector: see naive.py for the definition and ../kernel/matvec.h for the layout.

#include "../kernel/matvec.h"

// y: room for whole blocks of sixteen rows.
FAIRWAY_EXPORT(matvec)
(const uint8_t* data, const float* step, const float* x, float* y, long rows, long columns, long format) {
    Operand in;
    in.take(x, columns);
    multiply({rows, columns, format, data, step}, in, y, 0, 1);
}
