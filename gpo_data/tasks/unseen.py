"""What the grammars `scenes` evaluate with beyond what they train with: words and classes that no training prompt has.

The split takes one key in five from a list, which leaves few: of the 139 words of text.py 11 are held out and 9 for
validation. Intervals are as narrow as there are targets, so these come on top:

    text    with them 203 words are held out and 104 are for validation
    count   the keys of these classes that the split does not give to training: with them 65 classes, of whose keys 61
            are held out and 38 are for validation

Invariant: no key of a word here is for training (split.py), so that adding one changes no training prompt.
"""

from gpo_data.tasks.listed import listed

WORDS = listed(
    """
    Arena, Bank, Brewery, Cafe, Castle, Chocolate, City Tour, Classroom, Crossing, Cycle Path, Arrivals, Dog Park,
    Doughnuts, Espresso, Exchange, Farm Shop, Fire Exit, First Aid, Freight, Games, Gifts, Goldsmith, Grand Opening,
    Hardware, Hay Barn, Health Food, Heritage, Information, Keep Out, Kitchen, Last Call, Lecture, Lost and Found,
    Lunch, Meadow, Metro, Mill Road, Monday, Nails, No Entry, No Fishing, No Smoking, No Swimming, Nursery, Olives,
    Paint, Pet Shop, Plums, Pool, Quilts, Rice, Ring Road, Rooftop, Roses, Skate Park, Soups, Souvenirs, Spa, Steak,
    Sugar, Summit, Sweets, Tea House, Terrace, Trail Head, Trains, University, Vegan, Violins, Volleyball, Weaving,
    Wool, Yachts, Zoo, Berlin, Bristol, Geneva, London, Marseille, Melbourne, Mumbai, Munich, Sydney, Tokyo, Be
    Yourself, Follow Me, Go Slow, Keep Going, Less is More, Look Right, Look Up, On Air, Open at Nine, Play Fair,
    Please Queue, Read Books, Sing Along, Speak Up, Stop Here, Take Care, Think Big, Time Flies, Turn Left, Vote Here,
    Bargains, Cash Only, Closing Down, Coming Soon, Ask Inside, Pick Your Own, Special Today, Weekend, Gate 2, Level
    5, Bus 20, Bus 4, Bay 13, Bus 57, Platform 1, Exit 15, Level 2, Bay 19, Gate 6, Bus 46, Room 120, Gate 15, Bus 9,
    Bus 18, Room 113, Bus 21, Bus 10, Level 6, Old Anchor, Lucky Kettle, Grand Window, Little Ladder, Little Turtle,
    Wild Bridge, Happy Turtle, Bright Moon, Crooked Pearl, Crooked Pony, Old Sparrow, Crooked Owl, Secret Maple,
    Crooked Goose, Little Pony, Bright Kettle, Red Rose, Grand Sparrow, Black Harp, Blue Maple, Sunny Pearl, Quiet
    Sparrow, Royal Pony, Old Barrel, Lucky Willow, Black Turtle, Black Barrel, Lucky Whale, Quiet Bridge, Golden
    Robin, Sunny Valley, Crooked Window, Black Willow, Happy Falcon, Black Moon, Sunny Lion, Blue Turtle, Bright
    Wheel, Blue Anchor, Happy Sparrow, Old Pony, Royal Heron, Little Lantern, Green Peacock, Silver Lion, Crooked
    Garden, Old Ship, Silver Tiger, White Ship, Old Window, New Crown, Lucky Anchor, New Falcon, Golden Garden, Wild
    Pony, Little Rose, Black Ladder, Sunny Dragon, Silver Compass, Wild Crown, Lucky Ship, Little Maple, White Dragon,
    Wild Swan, Blue Feather, Royal Dragon, Happy Heron, Quiet Oak, Secret Bridge, Secret Anchor, New Peacock, Green
    Mill, Black Pearl, Happy Window, Black Mill, Green Robin, Black Bear, Silver Mill, Black Sparrow, Silver Star,
    Golden Willow, Blue Valley, New Dragon, White Hammer, Red Stone, Golden Pearl, Bright Swan, Old Moon, Bright
    Willow, New Ship, Grand Ship, Crooked Compass, Royal Tiger, Crooked Stone, Red Tiger, Sunny Falcon, New Tiger, Red
    Compass, New Lion, White Wheel, Old Wheel, New Stone, Sunny Harp, Old Bridge, Blue Compass, Bright Star, Golden
    Mill, Golden Owl, Secret Falcon, Silver Hammer, Wild Peacock, Sunny Barrel, Red Swan, New Kettle, Secret Sparrow,
    New Valley, Little Kettle, Red Lion, Quiet Crown, White Valley, Silver Valley, Red Barrel, Wild Feather, Blue
    Hammer, Sunny Oak, Sunny Tiger, Black Goose, Little Garden, Golden Anchor, Golden Rose, Golden Stone, Happy Moon,
    Happy Bear, Grand Moon, Little Oak, Blue Lion, Grand Pony, Red Window, Crooked Maple, Lucky Sparrow, Wild Dragon,
    Old Star, Sunny Wheel, White Maple, Lucky Rose, Little Anchor, Secret Pony, Happy Feather, Red Wheel, Bright
    Pearl, Grand Bear, Crooked Ship, Quiet Moon, Secret Bear, Blue Barrel
    """
)
# Of COCO what stands apart in a photograph, and is not in heaps or pairs; and has a key that is not for training.
CLASSES = listed(
    """
    train, stop sign, parking meter, frisbee, skateboard, snowboard, sports ball, tennis racket, wine glass, sandwich,
    carrot, pizza, potted plant, bed, toilet, keyboard, cell phone, handbag, remote, microwave, tv, refrigerator, mouse,
    sink, toaster, baseball bat, baseball glove
    """
)
