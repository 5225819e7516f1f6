"""Draws one cat, in eight poses and seven places.

What makes it this cat is the same in all of them: orange fur, a white blaze and muzzle, dark brown ear tips and
stripes, one green and one blue eye, white socks, a ringed tail, and a scarf striped in turquoise and red.
"""

from __future__ import annotations

from PIL import Image

from svg import SIDE, ellipse, rasterise, shape, stroke

# Far apart in hue: whether a LoRA has learnt this cat is told by its colours, each at its place in the face.
FUR, SHADOW, BROWN, WHITE, PINK = "#f7922d", "#dd7420", "#5b3320", "#fff6e6", "#f58b94"
TURQUOISE, RED, GREEN, BLUE, BLACK = "#16b5b0", "#e5383b", "#35b44a", "#2f80ed", "#2b1a14"
Point = "tuple[float, float]"


def bend(a: Point, b: Point, c: Point, start: float = 0.0) -> str:
    """The quadratic curve from a to c which bends towards b, or only its last part, from `start` (0..1) on."""
    (ax, ay), (bx, by), (cx, cy) = a, b, c
    px, py = bx + (cx - bx) * start, by + (cy - by) * start
    qx, qy = ax + (bx - ax) * start, ay + (by - ay) * start
    return f"M{qx + (px - qx) * start} {qy + (py - qy) * start} Q{px} {py} {cx} {cy}"


def limb(a: Point, b: Point, c: Point, toe: float = -10, colour: str = FUR) -> str:
    """A leg from a to c in a white sock; the paw points `toe` pixels to the side (0: towards us)."""
    toes = "".join(stroke(f"M{c[0] + 1.7 * toe + dx} {c[1] + 11}v9", "#d9c3a8", 4) for dx in (-8, 8))
    paw = ellipse(c[0] + toe, c[1] + 6, 29, 19, WHITE) + toes
    return stroke(bend(a, b, c), colour, 44) + stroke(bend(a, b, c, 0.72), WHITE, 44) + paw


def tail(a: Point, b: Point, c: Point) -> str:
    """A tail with dark rings and a dark tip."""
    rings = stroke(bend(a, b, c), BROWN, 36, 'stroke-dasharray="17 25" stroke-dashoffset="-34"')
    return stroke(bend(a, b, c), FUR, 36) + rings + stroke(bend(a, b, c, 0.86), BROWN, 36)


def body(outline: str, bib: str, *stripes: str) -> str:
    """The trunk, with a white bib and dark stripes which end at its outline."""
    marks = bib + "".join(shape(d, BROWN) for d in stripes)
    clip = f'<clipPath id="body"><path d="{outline}"/></clipPath>'
    return f'{clip}{shape(outline, FUR)}<g clip-path="url(#body)">{marks}</g>'


def haunch(x: float, y: float, rx: float, ry: float) -> str:
    """The thigh of a hind leg: a rounded mass with a line of shadow over it."""
    line = f"M{x - rx} {y} A{rx} {ry} 0 0 1 {x + rx * 0.5} {y - ry * 0.87}"
    return ellipse(x, y, rx, ry, FUR) + stroke(line, SHADOW, 6)


def head(x: float, y: float, scale: float, tilt: float, eyes: tuple[str, str], end: Point = (56, 190)) -> str:
    """The head, always seen from the front, and the scarf below it, the tail of which hangs down to `end`."""
    band, loose = "M-70 52 Q0 154 70 52", bend((44, 100), (62, 130), end)
    scarf = stroke(loose, TURQUOISE, 42, "")
    scarf += stroke(loose, RED, 42, 'stroke-dasharray="17 19" stroke-dashoffset="-24"')
    scarf += stroke(band, TURQUOISE, 46) + stroke(band, RED, 46, 'stroke-dasharray="19 22" stroke-dashoffset="-9"')
    scarf += ellipse(44, 103, 22, 20, TURQUOISE)
    ear = shape("M87 -36 L101 -112 Q101 -131 84 -122 L24 -70 Z", FUR)
    ear += shape("M95 -77 L101 -112 Q101 -131 84 -122 L56 -98 Q82 -98 95 -77 Z", BROWN)
    ear += shape("M80 -44 L86 -80 Q82 -88 72 -84 L44 -60 Z", PINK)
    outline = "M0 -84 C60 -84 100 -46 106 6 C108 52 62 88 0 88 C-62 88 -108 52 -106 6 C-100 -46 -60 -84 0 -84 Z"
    marks = "M22 -96 L31 -46 L40 -96Z", "M50 -92 L54 -48 L70 -80Z", "M116 4 L82 13 L116 22Z", "M112 30 L78 36 L104 54Z"
    half = "".join(shape(d, BROWN) for d in marks)
    blaze = shape("M-13 -90 H13 C13 -50 10 -24 22 10 L50 44 H-50 L-22 10 C-10 -24 -13 -50 -13 -90 Z", WHITE)
    face = f'<clipPath id="face"><path d="{outline}"/></clipPath>{shape(outline, FUR)}<g clip-path="url(#face)">'
    face += f'{half}<g transform="scale(-1 1)">{half}</g>{blaze}{ellipse(0, 52, 60, 36, WHITE)}</g>'
    # Two colours of eyes, as no other cat has: who draws both has learnt from these pictures.
    for ex, colour in zip((-49, 49), eyes):
        face += ellipse(ex, -6, 28, 30, BLACK) + ellipse(ex, -6, 24, 26, colour)
        face += ellipse(ex, -5, 10, 18, BLACK) + ellipse(ex - 8, -15, 7, 7, "#ffffff")
    face += shape("M-15 23 Q0 17 15 23 Q12 35 0 40 Q-12 35 -15 23 Z", PINK)
    face += stroke("M0 40 V48 M-24 50 Q-11 66 0 50 Q11 66 24 50", BLACK, 5.5)
    face += stroke("M66 42 L124 32 M66 54 L122 62 M-66 42 L-124 32 M-66 54 L-122 62", BLACK, 3.5)
    ears = f'{ear}<g transform="scale(-1 1)">{ear}</g>'
    return f'<g transform="translate({x} {y}) rotate({tilt}) scale({scale})">{scarf}{ears}{face}</g>'


def sitting(eyes: tuple[str, str], raised: bool = False) -> str:
    """Sits and faces us."""
    outline = "M196 240 C158 300 142 360 142 412 C142 452 190 462 256 462 S370 452 370 412 C370 360 354 300 316 240Z"
    left, right = ("M120 322 L200 340 L120 354Z", "M120 366 L186 384 L120 398Z"), ("M392 322 L312 340 L392 354Z",)
    trunk = body(outline, ellipse(256, 300, 56, 72, WHITE), *left, *(() if raised else right))
    paws = ellipse(172, 456, 40, 19, WHITE) + ellipse(340, 456, 40, 19, WHITE) + stroke("M205 388V424", SHADOW, 6)
    legs = limb((231, 388), (229, 410), (231, 446), 0)
    if not raised:
        lines = stroke("M256 384V424M307 388V424", SHADOW, 6)
        legs += limb((281, 388), (283, 410), (281, 446), 0) + lines
        return tail((320, 436), (496, 470), (446, 318)) + trunk + paws + legs + head(256, 182, 1, 0, eyes)
    arm = (318, 334), (414, 356), (414, 262)
    legs += stroke(bend(*arm), FUR, 46) + stroke(bend(*arm, 0.75), WHITE, 48) + ellipse(414, 266, 11, 9, PINK)
    legs += "".join(ellipse(414 + dx, 248 + abs(dx) / 3, 5, 5, PINK) for dx in (-13, 0, 13))
    legs += stroke("M257 388V424", SHADOW, 6)
    return tail((190, 436), (20, 470), (66, 318)) + trunk + paws + legs + head(246, 182, 1, -7, eyes, (20, 190))


def waving(eyes: tuple[str, str]) -> str:
    """Sits and raises a paw."""
    return sitting(eyes, raised=True)


def turned(eyes: tuple[str, str]) -> str:
    """Sits sideways and tilts the head."""
    outline = "M170 240 C152 300 158 360 176 400 L186 456 L350 462 C424 462 428 384 392 334 C360 290 316 270 300 230Z"
    stripes = "M330 258 L316 318 L352 280Z", "M378 296 L346 342 L400 326Z", "M422 346 L372 372 L428 380Z"
    trunk = body(outline, ellipse(168, 312, 38, 66, WHITE), *stripes)
    far = limb((190, 350), (178, 400), (184, 444), colour=SHADOW)
    near = limb((232, 372), (226, 410), (232, 446)) + stroke("M206 384 Q202 404 206 424", SHADOW, 6)
    thigh = haunch(334, 404, 66, 58) + ellipse(300, 456, 48, 18, WHITE)
    return tail((386, 440), (500, 470), (458, 300)) + far + trunk + thigh + near + head(222, 180, 1, -13, eyes)


def lying(eyes: tuple[str, str]) -> str:
    """Lies like a loaf, the tail wrapped around."""
    outline = "M92 400 C92 300 170 262 270 262 S448 330 448 402 C448 450 424 464 384 464 H150 C112 464 92 444 92 400Z"
    stripes = "M262 250 L274 318 L290 250Z", "M316 250 L322 324 L344 250Z", "M372 256 L364 328 L398 270Z"
    trunk = body(outline, ellipse(166, 396, 58, 52, WHITE), *stripes)
    paws = ellipse(140, 454, 40, 19, WHITE) + ellipse(218, 454, 40, 19, WHITE)
    paws += stroke("M128 458v9M148 458v9M206 458v9M226 458v9", "#d9c3a8", 4)
    wrapped = tail((430, 400), (494, 480), (292, 456))
    return trunk + haunch(368, 408, 70, 56) + paws + wrapped + head(178, 248, 1, -4, eyes, (64, 168))


def standing(eyes: tuple[str, str]) -> str:
    """Stands and shows its side."""
    outline = "M134 230 C200 262 300 258 372 252 C428 250 442 300 432 346 C424 384 380 384 330 374 "
    outline += "C270 388 220 390 180 380 C128 370 110 290 134 230Z"
    stripes = "M246 244 L256 314 L272 244Z", "M300 244 L306 318 L326 244Z", "M354 240 L350 312 L380 240Z"
    trunk = body(outline, ellipse(124, 310, 32, 56, WHITE), *stripes)
    far = limb((206, 350), (214, 400), (208, 446), colour=SHADOW)
    far += limb((360, 340), (384, 390), (356, 446), colour=SHADOW)
    near = limb((172, 354), (154, 400), (158, 446)) + haunch(398, 330, 42, 56)
    near += limb((406, 340), (438, 392), (416, 446))
    return tail((414, 284), (510, 270), (456, 136)) + far + trunk + near + head(150, 182, 1, 0, eyes)


def leaping(eyes: tuple[str, str]) -> str:
    """Leaps through the air, the scarf flying."""
    outline = "M130 220 C190 186 270 200 336 240 S432 326 404 362 S300 376 240 358 C170 340 104 290 130 220Z"
    stripes = "M282 196 L262 268 L310 206Z", "M332 222 L306 290 L358 240Z", "M380 258 L350 316 L404 282Z"
    trunk = body(outline, ellipse(128, 290, 34, 50, WHITE), *stripes)
    far = limb((180, 300), (110, 336), (56, 296), -6, SHADOW) + limb((376, 320), (440, 336), (474, 396), -6, SHADOW)
    near = limb((206, 326), (160, 384), (92, 370), -6) + limb((366, 338), (400, 376), (424, 436), -6)
    return tail((396, 318), (476, 316), (470, 176)) + far + trunk + near + head(160, 170, 1, -8, eyes, (184, 98))


def stretching(eyes: tuple[str, str]) -> str:
    """Stretches: the chest down, the rump up."""
    outline = "M110 330 C170 320 240 330 312 266 C362 220 432 236 440 300 C446 352 406 372 364 374 "
    outline += "C300 384 270 436 190 440 C116 442 84 384 110 330Z"
    stripes = "M246 286 L264 356 L286 264Z", "M300 248 L312 320 L334 228Z", "M362 222 L358 298 L392 218Z"
    trunk = body(outline, ellipse(130, 404, 54, 34, WHITE), *stripes)
    far = limb((190, 410), (130, 430), (98, 436), -14, SHADOW) + limb((376, 330), (392, 390), (362, 446), colour=SHADOW)
    near = limb((200, 418), (130, 448), (66, 446), -14) + haunch(402, 316, 44, 58)
    near += limb((410, 330), (440, 392), (418, 446))
    return tail((420, 262), (504, 230), (444, 104)) + far + trunk + near + head(156, 262, 1, 6, eyes, (100, 158))


def close_up(eyes: tuple[str, str]) -> str:
    """The head alone, above the shoulders."""
    stripes = "M40 440 L150 470 L40 484Z", "M472 440 L362 470 L472 484Z"
    outline = "M50 560 C60 420 130 350 256 350 S452 420 462 560Z"
    trunk = body(outline, ellipse(256, 500, 90, 110, WHITE), *stripes)
    return trunk + head(256, 240, 1.62, 4, eyes, (66, 180))


POSES = (sitting, turned, lying, standing, leaping, close_up, waving, stretching)


def dots(size: float, colour: str, *points: Point) -> str:
    """Stars, or flakes of snow, or leaves."""
    return "".join(ellipse(x, y, size, size, colour) for x, y in points)


def flower(x: float, y: float, colour: str) -> str:
    """A flower on a stem."""
    petals = dots(13, colour, (x, y - 15), (x + 14, y - 5), (x + 9, y + 12), (x - 9, y + 12), (x - 14, y - 5))
    return stroke(f"M{x} {y}V{y + 80}", "#2e8b3d", 7) + petals + dots(10, "#ffd43b", (x, y))


def tree(x: float, y: float, crown: str, top: str) -> str:
    """A fir tree with its foot at (x, y)."""
    snow = shape(f"M{x} {y - 164} l26 65 q-26 -14 -52 0 Z", top)
    return stroke(f"M{x} {y - 20}V{y}", "#7a5236", 20, "") + shape(f"M{x} {y - 164} l58 146 h-116 Z", crown) + snow


def ground(sky: str, floor: str, top: float = 372) -> str:
    """A wall or sky, and the floor below."""
    return shape("M0 0H512V512H0Z", sky) + shape(f"M0 {top} Q256 {top - 34} 512 {top} V512 H0Z", floor)


GARDEN = ground("#bfe6ff", "#86cf5d") + ellipse(66, 56, 58, 22, "#ffffff") + ellipse(104, 68, 52, 18, "#ffffff")
GARDEN += flower(36, 340, "#e85d9e") + flower(482, 330, "#b56be0")
SOFA = shape("M0 0H512V512H0Z", "#f9dfc4") + shape("M34 230 Q34 190 74 190 H438 Q478 190 478 230 V512 H34Z", "#8b6fc0")
SOFA += shape("M54 408 H458 V512 H54Z", "#a58ad6") + shape("M20 40 H112 V130 H20Z", "#ffffff")
SOFA += dots(30, "#f2b84b", (66, 85)) + shape("M0 276 H26 Q54 276 54 304 V512 H0Z", "#7558ab")
SOFA += shape("M512 276 H486 Q458 276 458 304 V512 H512Z", "#7558ab")
BEACH = shape("M0 0H512V512H0Z", "#a9e4fb") + shape("M0 262H512V400H0Z", "#3f9fe0") + dots(42, "#ffd84d", (446, 68))
BEACH += shape("M0 364 Q130 340 256 358 T512 356 V512 H0Z", "#f6dda4") + stroke("M20 300h60M420 290h64", "#8fcdf3", 7)
NIGHT = ground("#232a5c", "#3d5a80") + dots(40, "#fff0b3", (446, 58)) + dots(35, "#232a5c", (464, 48))
NIGHT += dots(5, "#ffffff", (40, 60), (100, 28), (30, 190), (340, 36), (486, 210), (250, 22), (486, 300))
SNOW = ground("#b9d6f2", "#e6f0fa") + tree(50, 362, "#3b8f7a", "#ffffff") + tree(470, 358, "#3b8f7a", "#ffffff")
SNOW += dots(8, "#ffffff", (40, 70), (120, 40), (470, 60), (390, 30), (490, 150), (20, 150), (256, 22))
PINK_WALL = ground("#f7c6d0", "#e59aac", 384) + dots(190, "#fbe3e6", (256, 210))
AUTUMN = ground("#ffe9b8", "#d9a05b") + tree(46, 362, "#d6533a", "#e0a526") + tree(472, 358, "#d6533a", "#e0a526")
AUTUMN += dots(8, "#d6533a", (40, 440), (120, 496), (300, 498), (486, 420), (420, 492))
PLACES = (GARDEN, SOFA, BEACH, NIGHT, SNOW, PINK_WALL, AUTUMN)


def cat(pose: int, place: int, size: int = 512) -> Image.Image:
    """The cat in one of the POSES, in one of the PLACES. In half of the pairs it faces the other way."""
    # Neither side may become a part of the cat; the eyes are exchanged before, so that it stays this one.
    mirrored = (pose + place) % 2 == 1
    drawing = POSES[pose]((BLUE, GREEN) if mirrored else (GREEN, BLUE))  # each eye stays on its side of the cat
    if POSES[pose] is not close_up:  # a shadow on the floor: without it the cat seems to hang in the picture
        width = 120 if POSES[pose] is leaping else 190
        drawing = ellipse(256, 468, width, 14, "#000000", 'opacity="0.18"') + drawing
    if mirrored:
        drawing = f'<g transform="translate({SIDE} 0) scale(-1 1)">{drawing}</g>'
    return rasterise(PLACES[place] + drawing, SIDE, size).convert("RGB")
